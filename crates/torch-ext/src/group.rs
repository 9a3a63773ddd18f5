//! Several processes that compute together: sums and gathering over them, by c10d, PyTorch's distributed engine (`group.cpp`).
//!
//! Tensors on a CPU go through Gloo, those on a GPU through NCCL. The processes find each other at a store that one of them, or torchrun,
//! holds. Every process must call the same functions in the same order with tensors of the same size and kind: Gloo ends the process where
//! sizes differ.

use std::ffi::{CString, c_char, c_int};
use std::ptr::{NonNull, null_mut};
use std::time::Duration;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::ext::done;

/// The C++ side of a [`Group`].
#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

// SAFETY: these are the signatures in group.cpp. A `C_tensor` is an `at::Tensor`; every function catches C++ exceptions.
#[expect(unsafe_code, reason = "the C interface of group.cpp")]
unsafe extern "C" {
    fn torch_ext_group_join(
        out: *mut *mut Handle,
        host: *const c_char,
        port: u16,
        server: c_int,
        prefix: *const c_char,
        rank: c_int,
        world: c_int,
        join_ms: i64,
        timeout_ms: i64,
    ) -> *mut c_char;
    fn torch_ext_group_open_gpu(group: *mut Handle, device: c_int) -> *mut c_char;
    fn torch_ext_group_sum(group: *mut Handle, tensor: *mut C_tensor) -> *mut c_char;
    fn torch_ext_group_gather(group: *mut Handle, out: *mut C_tensor, tensor: *mut C_tensor) -> *mut c_char;
    fn torch_ext_group_leave(group: *mut Handle) -> *mut c_char;
}

/// Where and as what a process joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    /// Where the store is.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who holds the store.
    pub store: StoreHolder,
    /// What tells this meeting from others at the same store, such as the number of a restart.
    pub name: String,
    /// Which process this is, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// How long the others are waited for at first.
    pub join_within: Duration,
    /// How long they are waited for in every later call.
    pub answer_within: Duration,
}

/// Who holds the store at which processes meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreHolder {
    /// This process.
    This,
    /// Another one, which may be none of the group.
    Another,
}

/// A process among others. It is left when this is dropped.
#[derive(Debug)]
pub struct Group {
    handle: NonNull<Handle>,
    world: usize,
}

// SAFETY: nothing of a process group is bound to the thread that made it: c10d's backends and stores lock what they share, and Gloo's
// calls run on threads of its own.
#[expect(unsafe_code, reason = "the raw pointer keeps it from being derived")]
unsafe impl Send for Group {}

impl Group {
    /// Waits for all the others and joins them.
    ///
    /// # Errors
    /// Numbers or texts that libtorch cannot take, others that do not come in time, a store that is not there or that cannot be opened; in
    /// one line.
    pub fn join(meeting: &Meeting) -> Result<Self, TchError> {
        let text = |text: &str| CString::new(text).map_err(|_| TchError::Torch(format!("a zero byte in `{text:?}`")));
        let (host, name) = (text(&meeting.host)?, text(&meeting.name)?);
        let number = |number: usize| {
            c_int::try_from(number).map_err(|_| TchError::Torch(format!("{number} processes are too many")))
        };
        let (rank, world) = (number(meeting.rank)?, number(meeting.world)?);
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let (join, answer) = (milliseconds(meeting.join_within), milliseconds(meeting.answer_within));
        let server = c_int::from(meeting.store == StoreHolder::This);
        let mut out = null_mut();
        // SAFETY: all pointers live through the call; `out` is a fresh object of ours when there is no message.
        #[expect(unsafe_code, reason = "a call into group.cpp")]
        unsafe {
            let (host, name) = (host.as_ptr(), name.as_ptr());
            let message =
                torch_ext_group_join(&raw mut out, host, meeting.port, server, name, rank, world, join, answer);
            done(message)?;
        }
        let handle = NonNull::new(out).ok_or_else(|| TchError::Torch("no process group was made".to_owned()))?;
        Ok(Group { handle, world: meeting.world })
    }

    /// Opens NCCL, so that tensors on GPU `index` can be summed too; load [`crate::load_cuda`] first.
    ///
    /// # Errors
    /// No such GPU, or a libtorch without NCCL.
    pub fn open_gpu(&self, index: usize) -> Result<(), TchError> {
        let device = crate::ext::device(index)?;
        // SAFETY: the handle lives through the call.
        #[expect(unsafe_code, reason = "a call into group.cpp")]
        unsafe {
            done(torch_ext_group_open_gpu(self.handle.as_ptr(), device))
        }
    }

    /// Makes `tensor` the sum of the tensors of all processes, to the bit the same in all of them.
    ///
    /// # Errors
    /// A tensor that is not contiguous or is on a device that the group was not opened for; a process that has gone or does not answer.
    /// After an error the group is of no more use.
    pub fn sum(&self, tensor: &mut Tensor) -> Result<(), TchError> {
        // SAFETY: both live through the call.
        #[expect(unsafe_code, reason = "a call into group.cpp")]
        unsafe {
            done(torch_ext_group_sum(self.handle.as_ptr(), tensor.as_mut_ptr()))
        }
    }

    /// The tensors of all processes in their order, `[world, …]`.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        let shape: Vec<i64> = std::iter::once(self.world as i64).chain(tensor.size()).collect();
        // Gloo wants what one process gives to be of the shape of a part of the whole.
        let mut flat = tensor.f_detach()?.f_contiguous()?.f_view([-1])?;
        let room = [flat.numel() as i64 * self.world as i64];
        let mut out = Tensor::f_empty(room, (flat.f_kind()?, flat.device()))?;
        // SAFETY: all live through the call.
        #[expect(unsafe_code, reason = "a call into group.cpp")]
        unsafe {
            done(torch_ext_group_gather(self.handle.as_ptr(), out.as_mut_ptr(), flat.as_mut_ptr()))?;
        }
        out.f_view(shape.as_slice())
    }

    /// The bytes of all processes in their order; each may have as many as it likes.
    ///
    /// # Errors
    /// As [`Group::sum`].
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TchError> {
        let lengths = Vec::<i64>::try_from(self.gather(&Tensor::from_slice(&[bytes.len() as i64]))?.f_flatten(0, -1)?)?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.world]);
        }
        let mut padded = bytes.to_vec();
        padded.resize(usize::try_from(longest).unwrap_or(0), 0);
        let all = self.gather(&Tensor::from_slice(&padded))?;
        let row = |(rank, &length): (usize, &i64)| {
            Vec::<u8>::try_from(all.f_get(rank as i64)?.f_narrow(0, 0, length)?.f_to_kind(Kind::Uint8)?)
        };
        lengths.iter().enumerate().map(row).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the handle came from `torch_ext_group_join` and is used nowhere after this.
        #[expect(unsafe_code, reason = "a call into group.cpp")]
        unsafe {
            // Others see that this process has gone; there is nobody to tell that leaving failed.
            let _ = done(torch_ext_group_leave(self.handle.as_ptr()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn meeting(rank: usize, world: usize, port: u16) -> Meeting {
        Meeting {
            host: "127.0.0.1".to_owned(),
            port,
            store: if rank == 0 { StoreHolder::This } else { StoreHolder::Another },
            name: "test".to_owned(),
            rank,
            world,
            join_within: Duration::from_secs(20),
            answer_within: Duration::from_secs(20),
        }
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// Runs `work` as every one of `world` ranks, each on a thread of its own.
    fn on_ranks<T: Send>(world: usize, work: impl Fn(usize, Group) -> T + Sync) -> Vec<T> {
        let port = free_port();
        std::thread::scope(|scope| {
            let work = &work;
            let start = |rank| scope.spawn(move || work(rank, Group::join(&meeting(rank, world, port)).unwrap()));
            let threads: Vec<_> = (0..world).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_and_gathering_are_those_of_all_ranks() {
        for world in [2, 3] {
            let found = on_ranks(world, |rank, group| {
                let mut numbers = Tensor::from_slice(&[rank as f32 + 0.1, 2.0]);
                group.sum(&mut numbers).unwrap();
                let gathered = group.gather(&Tensor::from_slice(&[rank as f64, -1.0])).unwrap();
                // As many bytes as the rank, none at rank 0.
                let bytes = group.gather_bytes(&vec![rank as u8 + 7; rank]).unwrap();
                (Vec::<f32>::try_from(numbers).unwrap(), gathered.size(), gathered.double_value(&[1, 0]), bytes)
            });
            for (numbers, size, second, bytes) in &found {
                assert_eq!(numbers, &found[0].0, "to the bit");
                let expected = (0..world).map(|rank| rank as f32 + 0.1).sum::<f32>();
                assert!((numbers[0] - expected).abs() < 1e-6 && numbers[1] == 2.0 * world as f32, "{numbers:?}");
                assert_eq!((size.as_slice(), *second), ([world as i64, 2].as_slice(), 1.0));
                assert_eq!(*bytes, (0..world).map(|rank| vec![rank as u8 + 7; rank]).collect::<Vec<_>>());
            }
        }
        assert!(on_ranks(2, |_, group| group.gather_bytes(&[]).unwrap()).iter().flatten().all(Vec::is_empty));
    }

    #[test]
    fn what_is_not_contiguous_is_refused_and_not_summed_in_part() {
        for error in on_ranks(2, |_, group| {
            let mut strided = Tensor::ones([4, 2], (Kind::Float, tch::Device::Cpu)).narrow(1, 0, 1);
            group.sum(&mut strided).unwrap_err().to_string()
        }) {
            assert!(error.contains("contiguous tensors only"), "{error}");
        }
    }

    #[test]
    fn a_rank_that_has_gone_is_an_error_in_seconds() {
        let began = Instant::now();
        let found = on_ranks(2, |rank, group| {
            if rank == 1 {
                return None;
            }
            Some(group.gather_bytes(b"is anybody there").unwrap_err().to_string())
        });
        let error = found[0].as_ref().unwrap();
        assert!(error.lines().count() == 1 && error.contains("onnection"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn without_cuda_there_is_no_nccl_and_the_rest_goes_on() {
        if !matches!(crate::load_cuda(), crate::CudaState::Unusable { .. }) {
            return;
        }
        for error in on_ranks(2, |_, group| {
            let error = group.open_gpu(0).unwrap_err().to_string();
            assert_eq!(group.gather_bytes(b"x").unwrap(), [b"x", b"x"]);
            error
        }) {
            assert!(error.contains("NCCL") || error.contains("CUDA") || error.contains("GPU"), "{error}");
        }
    }

    #[test]
    fn ranks_that_never_come_are_not_waited_for_forever() {
        let soon = Duration::from_millis(300);
        let error = Group::join(&Meeting { join_within: soon, ..meeting(0, 2, free_port()) }).unwrap_err().to_string();
        assert!(error.contains("1/2 clients joined"), "{error}");
        let error = Group::join(&Meeting { name: "a\0b".to_owned(), ..meeting(0, 2, 1) }).unwrap_err().to_string();
        assert!(error.contains("zero byte"), "{error}");
    }
}

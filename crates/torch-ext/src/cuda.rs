//! CUDA, loaded when the process asks for it: the binary is linked to libtorch's CPU library only and runs where no CUDA library is.

use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Whether this process can compute on an NVIDIA GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaState {
    /// It can.
    Usable {
        /// Number of visible GPUs, at least one.
        devices: usize,
    },
    /// It cannot.
    Unusable {
        /// Why, in one line.
        why: String,
    },
}

/// Variables in which a user says how libtorch's allocator works.
const ALLOCATOR: [&str; 2] = ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"];

/// Loads libtorch's CUDA library once per process and says whether a GPU can be used.
///
/// f32 products on a GPU are f32 products from then on: TF32 is turned off. Segments of memory are expandable, unless the environment says how memory is allocated. libtorch remembers its first look for CUDA, so this must come before anything that asks tch about CUDA.
pub fn load_cuda() -> CudaState {
    static STATE: OnceLock<CudaState> = OnceLock::new();
    STATE.get_or_init(load).clone()
}

fn load() -> CudaState {
    // SAFETY: the library's initialisers only register operators with the libtorch that is already loaded; it comes from the same
    // folder (the binary's rpath) and is never unloaded.
    #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => std::mem::forget(library),
        Err(error) => {
            // libloading keeps dlerror's text, which names the missing library, as the source.
            let text = std::error::Error::source(&error).unwrap_or(&error).to_string();
            let why = text.lines().next().unwrap_or("unknown reason");
            return CudaState::Unusable { why: format!("cannot load libtorch_cuda.so: {why}") };
        }
    }
    if ALLOCATOR.iter().all(|name| std::env::var_os(name).is_none()) {
        // A libtorch that does not know the setting goes on without it.
        let _ = crate::ext::expandable_segments();
    }
    match usize::try_from(tch::Cuda::device_count()) {
        Ok(devices) if devices > 0 && tch::Cuda::is_available() => match crate::ext::exact_f32() {
            Ok(()) => CudaState::Usable { devices },
            Err(error) => CudaState::Unusable { why: error.to_string() },
        },
        _ => CudaState::Unusable { why: "libtorch finds no NVIDIA GPU with a working driver".to_owned() },
    }
}

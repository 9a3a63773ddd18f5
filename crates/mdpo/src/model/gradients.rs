//! Where a backward pass puts the gradients of what is trained.
//!
//! Pieces that run back side by side end in any order, and sums of floating-point numbers depend on theirs. So each hands its gradients over,
//! and they are added to the leaves in the order in which the pieces began.

use crate::nn::precision::done;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tch::{Kind, Tensor};
use torch_ext::Shared;

/// Pushes `gradient` back through `y`'s graph into every leaf.
pub(crate) fn push_back(y: &Tensor, gradient: &Tensor) {
    (y * gradient).sum(Kind::Float).backward();
}

/// Takes the gradients of one piece.
#[derive(Debug)]
pub enum Sink<'a> {
    /// The leaves themselves.
    Leaves,
    /// A list beside them.
    Apart(Apart<'a>),
}

/// A gradient for each of some leaves, nothing where there was none yet.
#[derive(Debug)]
pub struct Apart<'a> {
    leaves: &'a [Shared],
    found: Vec<Option<Tensor>>,
}

impl Sink<'_> {
    /// Pushes `gradient` back through `y`'s graph; the result is the gradient of `input`, where there is one.
    pub(super) fn push_back(&mut self, y: &Tensor, gradient: &Tensor, input: Option<&Tensor>) -> Option<Tensor> {
        let Sink::Apart(Apart { leaves, found }) = self else {
            push_back(y, gradient);
            return input.map(Tensor::grad);
        };
        let wanted: Vec<&Tensor> = leaves.iter().map(|leaf| &**leaf).chain(input).collect();
        let mut new = done(torch_ext::gradients(y, gradient, &wanted));
        let of_input = input.and_then(|input| Some(new.pop()?.unwrap_or_else(|| input.zeros_like())));
        for (sum, new) in found.iter_mut().zip(new) {
            let Some(new) = new else { continue };
            *sum = Some(match sum.take() {
                Some(mut sum) => sum.g_add_(&new),
                None => new,
            });
        }
        of_input
    }
}

/// Adds what pieces hand over to the leaves, in the order of their numbers.
#[derive(Debug)]
pub(super) struct InOrder<'a> {
    leaves: &'a [Shared],
    ended: Mutex<Ended>,
}

/// What was handed over and when it is its turn.
#[derive(Debug, Default)]
struct Ended {
    next: usize,
    waiting: BTreeMap<usize, Vec<Option<Tensor>>>,
}

impl<'a> InOrder<'a> {
    pub fn new(leaves: &'a [Shared]) -> Self {
        InOrder { leaves, ended: Mutex::default() }
    }

    /// Takes the gradients of one piece.
    pub fn sink(&self) -> Sink<'a> {
        Sink::Apart(Apart { leaves: self.leaves, found: self.leaves.iter().map(|_| None).collect() })
    }

    /// Hands over the gradients of piece `number`; they wait until those of all before it are added.
    pub fn add(&self, number: usize, sink: Sink) {
        let Sink::Apart(gradients) = sink else { return };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.waiting.insert(number, gradients.found);
        let Ended { next, waiting } = &mut *ended;
        while let Some(gradients) = waiting.remove(next) {
            for (leaf, gradient) in self.leaves.iter().zip(gradients) {
                if let Some(gradient) = gradient {
                    done(torch_ext::add_gradient(leaf, &gradient));
                }
            }
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn gradients_are_added_in_the_order_of_their_pieces() {
        // Of these three no two orders have the same sum.
        let values = [1e8_f32, -1e8, 1.0];
        let sum = |order: [usize; 3]| {
            let leaf = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let leaves = [Shared::from(leaf.shallow_clone())];
            let sums = InOrder::new(&leaves);
            for number in order {
                let mut sink = sums.sink();
                sink.push_back(
                    &(&leaf * f64::from(values[number])),
                    &Tensor::ones([1], (Kind::Float, Device::Cpu)),
                    None,
                );
                sums.add(number, sink);
            }
            leaf.grad().double_value(&[0])
        };
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            assert_eq!(sum(order), 1.0, "{order:?}");
        }
    }
}

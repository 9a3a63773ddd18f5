//! The shared batch of two pairs whose values were worked out in plain floats, β = 0.1.

use super::*;

/// The step of the two pairs.
pub(crate) const STEP: StepTotals = StepTotals { pairs: 2, chosen_tokens: 35, answers: 4 };

pub(crate) fn vector(values: [f64; 2]) -> Tensor {
    Tensor::from_slice(&values)
}

fn sides(chosen: [f64; 2], rejected: [f64; 2]) -> Sides {
    Sides { chosen: vector(chosen), rejected: vector(rejected) }
}

/// The two pairs with a policy that equals the reference.
pub(crate) fn equal_pairs() -> Pairs {
    let pairs = pairs();
    let reference = pairs.reference.expect("golden pairs have a reference");
    Pairs { policy: reference.detached(), reference: Some(reference), ..pairs }
}

/// The two pairs; the policy's log-probs are leaves.
pub(crate) fn pairs() -> Pairs {
    let leaf = |values| vector(values).set_requires_grad(true);
    let policy = Views {
        chosen: leaf([-40.0, -33.5]),
        rejected: Some(leaf([-52.0, -30.25])),
        corrupted: Some(leaf([-61.0, -47.0])),
        mismatched: Some(leaf([-70.0, -80.25])),
    };
    let reference = Views {
        chosen: vector([-42.0, -31.0]),
        rejected: Some(vector([-50.0, -31.5])),
        corrupted: Some(vector([-60.0, -44.25])),
        mismatched: Some(vector([-70.25, -81.0])),
    };
    Pairs {
        policy,
        reference: Some(reference),
        has_image: vector([1.0, 1.0]),
        has: sides([1.0, 1.0], [1.0, 1.0]),
        tokens: sides([20.0, 15.0], [26.0, 12.0]),
        scores: Some(sides([6.0, 6.0], [4.0, 4.0])),
        rewards: Some(sides([0.9, 0.9], [-0.2, -0.2])),
        values: Some(leaf([0.3, 0.3])),
    }
}

pub(crate) fn assert_close(found: &Tensor, expected: [f64; 2]) {
    for (i, expected) in expected.into_iter().enumerate() {
        let found = found.double_value(&[i as i64]);
        assert!((found - expected).abs() < 1e-10 * expected.abs().max(1.0), "pair {i}: {found} ≠ {expected}");
    }
}

/// The weighted sum of the terms, per pair.
pub(crate) fn total(terms: &[Term]) -> Tensor {
    terms.iter().map(|term| &term.values * term.weight).reduce(|a, b| a + b).expect("at least one term")
}

/// Compares the gradient of every view that has one with central differences.
pub(crate) fn assert_gradients(objective: &Objective, pairs: impl Fn(&Objective) -> Pairs) {
    let loss = |pairs: &Pairs| total(&objective.terms(pairs, STEP)).sum(Kind::Double);
    let analytic = pairs(objective);
    loss(&analytic).backward();
    // Mismatched answers only say where KTO's reference point is.
    for (name, view) in analytic.policy.named().filter(|(name, _)| *name != "mismatched") {
        let gradient = view.grad();
        for pair in 0..2 {
            let shifted = |by: f64| {
                let moved = pairs(objective);
                let (_, view) = moved.policy.named().find(|(n, _)| *n == name).expect("the same views");
                tch::no_grad(|| {
                    let mut entry = view.get(pair);
                    let _ = entry.g_add_scalar_(by);
                });
                tch::no_grad(|| loss(&moved).double_value(&[]))
            };
            let numeric = (shifted(1e-4) - shifted(-1e-4)) / 2e-4;
            let found = if gradient.defined() { gradient.double_value(&[pair]) } else { 0.0 };
            assert!((found - numeric).abs() < 1e-7, "{objective:?}: {name}, pair {pair}: {found} ≠ {numeric}");
        }
    }
}

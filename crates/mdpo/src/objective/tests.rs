//! What holds for every objective, from the recipe to its values: golden numbers as written and with both answers exchanged, the value of a
//! policy that equals the reference, gradients, saturation. A `loss_type` without a row in the table fails.

use super::golden::{self, STEP};
use super::*;
use crate::config::{self, Run};
use std::collections::BTreeSet;
use std::f64::consts::LN_2;

/// A recipe and its loss of the two golden pairs, worked out in plain floats from the papers' formulas.
struct Case {
    recipe: &'static str,
    /// As they are.
    loss: [f64; 2],
    /// With chosen and rejected answer exchanged, scores and auxiliary rewards left in place.
    exchanged: [f64; 2],
    /// Where the policy is the reference.
    at_reference: Option<[f64; 2]>,
}

const fn case(recipe: &'static str, loss: [f64; 2], exchanged: [f64; 2], at_reference: Option<[f64; 2]>) -> Case {
    Case { recipe, loss, exchanged, at_reference }
}

const CASES: &[Case] = &[
    case(
        "loss_type: mdpo",
        [1.66550936625, 2.40478798754],
        [2.45555078186, 1.66873755186],
        Some([2.07944154168, 2.07944154168]),
    ),
    case("loss_type: dpo", [0.5130152524, 0.89812326414], [0.9130152524, 0.52312326414], Some([LN_2, LN_2])),
    case("loss_type: sigmoid", [0.5130152524, 0.89812326414], [0.9130152524, 0.52312326414], Some([LN_2, LN_2])),
    case(
        "loss_type: cdpo\nlabel_smoothing: 0.1",
        [0.5530152524, 0.86062326414],
        [0.8730152524, 0.56062326414],
        Some([LN_2, LN_2]),
    ),
    case("loss_type: hinge", [0.6, 1.375], [1.4, 0.625], Some([1.0, 1.0])),
    case("loss_type: ipo", [23.2620710059, 27.7816840278], [26.8005325444, 22.3650173611], Some([25.0, 25.0])),
    case(
        "loss_type: exo_pair\nlabel_smoothing: 0.1",
        [0.313593663692, 0.731708846086],
        [0.74727156825, 0.324490184252],
        Some([0.510825623766, 0.510825623766]),
    ),
    case(
        "loss_type: nca_pair",
        [1.29627773876, 1.49270864748],
        [1.49627773876, 1.29936826292],
        Some([2.0 * LN_2, 2.0 * LN_2]),
    ),
    case(
        "loss_type: robust\nlabel_smoothing: 0.1",
        [0.4630152524, 0.94499826414],
        [0.9630152524, 0.47624826414],
        Some([LN_2, LN_2]),
    ),
    case(
        "loss_type: bco_pair",
        [1.19627773876, 1.5835384552],
        [1.59627773876, 1.2085384552],
        Some([2.0 * LN_2, 2.0 * LN_2]),
    ),
    case("loss_type: sppo_hard", [18.0, 95.3125], [98.0, 20.3125], Some([50.0, 50.0])),
    case("loss_type: aot", [0.89812326414, 0.5130152524], [0.9130152524, 0.52312326414], Some([LN_2, LN_2])),
    case(
        "loss_type: aot\nlabel_smoothing: 0.1",
        [0.86062326414, 0.5530152524],
        [0.8730152524, 0.56062326414],
        Some([LN_2, LN_2]),
    ),
    case(
        "loss_type: aot_unpaired",
        [0.718459648013, 0.656350140827],
        [0.668459648013, 0.731350140827],
        Some([LN_2, LN_2]),
    ),
    case("loss_type: apo_zero", [0.900332005375, 1.09338587426], [1.09966799462, 0.90661412574], Some([1.0, 1.0])),
    case("loss_type: apo_down", [0.9511463372, 1.03049009907], [1.0488536628, 0.93854277342], Some([1.0, 1.0])),
    case(
        "loss_type: discopop",
        [0.670267293853, 0.898431088957],
        [0.913209356223, 0.687198531325],
        Some([0.84657359028, 0.84657359028]),
    ),
    case(
        "loss_type: sigmoid_norm",
        [0.684340153422, 0.706780532793],
        [0.702032461115, 0.679697199459],
        Some([LN_2, LN_2]),
    ),
    case(
        "f_divergence_type: forward_kl\nloss_type: dpo",
        [0.394838440707, 1.45529861725],
        [1.12021052228, 0.265699700867],
        Some([LN_2, LN_2]),
    ),
    case(
        "f_divergence_type: js_divergence\nloss_type: dpo",
        [0.598138869382, 0.816248429898],
        [0.798138869382, 0.583552364603],
        Some([LN_2, LN_2]),
    ),
    case(
        "f_divergence_type: alpha_divergence\nloss_type: dpo",
        [0.485478259476, 1.03169681191],
        [0.955558736934, 0.440680506125],
        Some([LN_2, LN_2]),
    ),
    case(
        "f_divergence_type: js_divergence\nloss_type: ipo",
        [24.1724012162, 26.6512446143],
        [25.8415287169, 23.4015577106],
        Some([25.0, 25.0]),
    ),
    case(
        "reference_free: true\nloss_type: dpo",
        [0.263282467338, 0.868792603978],
        [1.46328246734, 0.543792603978],
        None,
    ),
    case(
        "loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1.0]",
        [2.93538203539, 2.94949201664],
        [4.0210963211, 2.38877773092],
        Some([3.23177661667, 2.6032051881]),
    ),
    case("loss_type: sft", [2.28571428571, 1.91428571429], [2.97142857143, 1.72857142857], None),
    case("loss_type: simpo\nsimpo_gamma: 0.5", [0.97407698418, 0.956278626236], [0.97407698418, 0.992069581894], None),
    case(
        "loss_type: simpo\nbeta: 2.0\nsimpo_gamma: 1.0\ncpo_alpha: 0.5\nlabel_smoothing: 0.1",
        [2.35611883038, 1.84270025732],
        [2.69897597323, 2.46992991378],
        None,
    ),
    case("loss_type: orpo", [2.35502900377, 1.96899915721], [3.04074328948, 1.81499000485], None),
    case("loss_type: cpo", [2.54899675305, 2.78307831826], [4.43471103877, 2.27236403255], None),
    case(
        "loss_type: kto\ndesirable_weight: 1.5",
        [0.565839365549, 0.690202495548],
        [0.690347298336, 0.573722829685],
        Some([0.625, 0.625]),
    ),
    case(
        "loss_type: apo_zero_unpaired",
        [0.450166002688, 0.54669293713],
        [0.549833997312, 0.45330706287],
        Some([0.5, 0.5]),
    ),
    case(
        "loss_type: odpo",
        [0.850424435584, 1.36353298249],
        [1.38219833266, 0.864819972301],
        Some([1.09861228867, 1.09861228867]),
    ),
    case(
        "loss_type: odpo\nodpo_offset: identity\nodpo_alpha: 0.2",
        [LN_2, 1.15391836136],
        [1.17110066595, 0.705725303526],
        Some([0.9130152524, 0.9130152524]),
    ),
    case(
        "loss_type: odpo\nodpo_offset: ratio",
        [0.695883468035, 1.15766300491],
        [1.17487464333, 0.708495745479],
        Some([0.916290731874, 0.916290731874]),
    ),
    case("loss_type: dmpo", [0.5130152524, 0.89812326414], [0.9130152524, 0.52312326414], Some([LN_2, LN_2])),
    case(
        "loss_type: hpo\nrewards: {grade: 1.0}",
        [0.856561772896, 0.99000993429],
        [0.956168119125, 0.914300281122],
        Some([0.913142729783, 0.931392758461]),
    ),
    case(
        "loss_type: upo\nrewards: {grade: 1.0}\nhpo_preference: dpo\nhpo_lambda: 0.5\nhpo_logps: sum",
        [8.27323564492, 7.1792367645],
        [10.4445781339, 6.32449817374],
        Some([8.74859132124, 6.58223853065]),
    ),
];

impl Case {
    fn objective(&self) -> Objective {
        let least = "model_name_or_path: org/model\ndataset_name: rows.jsonl\noutput_dir: out\n";
        let run = Run::from_yaml(&format!("{least}{}", self.recipe), "recipe.yaml", &[]);
        run.unwrap_or_else(|error| panic!("{}: {error}", self.recipe)).objective
    }
}

/// Both answers of the golden pairs exchanged.
fn exchanged() -> Pairs {
    let views = |views: Views| Views {
        rejected: Some(views.chosen),
        chosen: views.rejected.expect("golden pairs have both answers"),
        ..views
    };
    let sides = |sides: Sides| Sides { chosen: sides.rejected, rejected: sides.chosen };
    let pairs = golden::pairs();
    let (policy, reference, tokens) = (views(pairs.policy), pairs.reference.map(views), sides(pairs.tokens));
    Pairs { policy, reference, tokens, ..pairs }
}

/// The pairs as the objective is given them.
fn given(objective: &Objective, pairs: Pairs) -> Pairs {
    let reference = pairs.reference.filter(|_| objective.needs().reference);
    Pairs { reference, ..pairs }
}

fn loss(objective: &Objective, pairs: Pairs) -> Tensor {
    golden::total(&objective.terms(&given(objective, pairs), STEP))
}

#[test]
fn every_loss_type_has_a_case() {
    let words =
        |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect::<Vec<_>>();
    let tried: BTreeSet<String> = CASES.iter().flat_map(|case| words(case.recipe)).collect();
    let missing: Vec<_> = config::loss_types().filter(|name| !tried.contains(*name)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn values_are_golden_as_written_and_exchanged() {
    for case in CASES {
        let objective = case.objective();
        println!("{}", case.recipe);
        golden::assert_close(&loss(&objective, golden::pairs()), case.loss);
        golden::assert_close(&loss(&objective, exchanged()), case.exchanged);
    }
}

#[test]
fn a_policy_that_equals_the_reference_costs_what_it_must() {
    for case in CASES {
        let objective = case.objective();
        let found = objective.loss_at_reference(&given(&objective, golden::pairs()), STEP);
        match (found, case.at_reference) {
            (Some(found), Some([a, b])) => assert!((found - a - b).abs() < 1e-10, "{}: {found}", case.recipe),
            (found, expected) => assert!(found.is_none() && expected.is_none(), "{}: {found:?}", case.recipe),
        }
        assert_eq!(case.at_reference.is_some(), objective.compares(), "{}", case.recipe);
        assert_eq!(objective.needs().reference, objective.compares(), "{}", case.recipe);
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    for case in CASES {
        golden::assert_gradients(&case.objective(), |objective| given(objective, golden::pairs()));
    }
}

#[test]
fn saturated_margins_stay_finite_with_their_gradients() {
    for case in CASES {
        let objective = case.objective();
        for by in [80.0, -80.0, 800.0, -800.0] {
            let leaf = |at: f64| golden::vector([at, -at]).set_requires_grad(true);
            let mut pairs = golden::pairs();
            pairs.policy.chosen = leaf(by / 0.1);
            pairs.policy.rejected = Some(leaf(-by / 0.1));
            pairs.policy.corrupted = Some(leaf(-by / 0.1));
            let pairs = given(&objective, pairs);
            let loss = golden::total(&objective.terms(&pairs, STEP)).sum(Kind::Double);
            loss.backward();
            assert!(loss.double_value(&[]).is_finite(), "{} at {by}", case.recipe);
            for (name, view) in pairs.policy.named().filter(|(_, view)| view.grad().defined()) {
                let finite = view.grad().isfinite().all().int64_value(&[]) == 1;
                assert!(finite, "{} at {by}: the gradient of `{name}`", case.recipe);
            }
        }
    }
}

#[test]
fn a_chosen_answer_that_becomes_likelier_costs_less() {
    for case in CASES {
        let objective = case.objective();
        // What sends a chosen reward back to its place, or any reward to a target, may go either way.
        if ["sppo_hard", "nca_pair", "apo_down", "ipo"].iter().any(|name| case.recipe.contains(name)) {
            continue;
        }
        let pairs = given(&objective, golden::pairs());
        golden::total(&objective.terms(&pairs, STEP)).sum(Kind::Double).backward();
        let highest = pairs.policy.chosen.grad().max().double_value(&[]);
        assert!(highest < 0.0, "{}: {highest}", case.recipe);
    }
}

#[test]
fn rewards_are_beta_times_the_log_ratio_or_what_stands_in_its_place() {
    let rewards = |recipe| {
        let objective = case(recipe, [0.0; 2], [0.0; 2], None).objective();
        objective.rewards(&given(&objective, golden::pairs()))
    };
    let chosen = |recipe| rewards(recipe).expect("a reward").chosen;
    golden::assert_close(&chosen("loss_type: dpo"), [0.2, -0.25]);
    golden::assert_close(&chosen("loss_type: hpo\nrewards: {grade: 1}\nbeta: 0.2"), [0.4, -0.5]);
    golden::assert_close(&chosen("loss_type: simpo"), [-0.2, -3.35 / 15.0]);
    golden::assert_close(&chosen("loss_type: cpo"), [-4.0, -3.35]);
    assert!(rewards("loss_type: sft").is_none());
    assert!(rewards("loss_type: mdpo").is_some_and(|rewards| rewards.corrupted.is_some()));
}

//! Every objective that TRL has, against TRL's own trainers on the same log-probs (`parity/objectives/generate.py`): values and gradients.
//!
//! A case's arguments go into a recipe under the names that TRL gives them. Where a recipe must say it otherwise, [`recipe`] says how and
//! why; where the two differ by design, a test of its own pins the difference.

use mdpo::config::{Objective, Run};
use mdpo::objective::{Pairs, Sides, SpanKind, SpanOf, Spans, StepTotals, Views};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Kind, Tensor};

/// The log-probs of each token of some answers.
type Answers = Vec<Vec<f64>>;

/// An answer that a row does not have.
const ABSENT: [f64; 0] = [];

struct Fixture(Value);

/// What TRL computed, and from what.
struct Case<'a> {
    fixture: &'a Fixture,
    found: &'a Value,
}

/// Values and per-token gradients of mdpo.
struct Ours {
    loss: f64,
    terms: Vec<(&'static str, f64)>,
    chosen: Answers,
    rejected: Answers,
}

/// The log-probs of some pairs under one model.
struct Given {
    chosen: Answers,
    rejected: Answers,
    mismatched: Option<Answers>,
}

fn answers(value: &Value) -> Answers {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("answers: {error}"))
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

impl Fixture {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/objectives/losses.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Fixture(serde_json::from_str(&text).expect("JSON"))
    }

    fn cases(&self) -> impl Iterator<Item = Case<'_>> {
        self.0["cases"].as_array().expect("cases").iter().map(|found| Case { fixture: self, found })
    }

    #[track_caller]
    fn case(&self, name: &str) -> Case<'_> {
        self.cases().find(|case| case.name() == name).unwrap_or_else(|| panic!("no case `{name}`"))
    }
}

impl Case<'_> {
    fn name(&self) -> &str {
        self.found["name"].as_str().expect("a name")
    }

    fn trainer(&self) -> &str {
        self.found["trainer"].as_str().expect("a trainer")
    }

    fn arguments(&self) -> &Map<String, Value> {
        self.found["arguments"].as_object().expect("arguments")
    }

    fn loss(&self) -> f64 {
        number(&self.found["loss"])
    }

    fn metric(&self, name: &str) -> f64 {
        number(&self.found["metrics"][name])
    }

    fn is_single(&self) -> bool {
        self.found["dtype"] == "float32"
    }

    /// The log-probs of the policy or, with `reference_`, of the reference.
    fn given(&self, whose: &str) -> Given {
        if self.trainer() != "KTOTrainer" {
            let of = |side: &str| answers(&self.fixture.0["pairs"][format!("{whose}{side}")]);
            return Given { chosen: of("chosen"), rejected: of("rejected"), mismatched: None };
        }
        let rows = &self.fixture.0["unpaired"];
        let exchanged = self.found["mismatched_exchanged"] == true;
        let other = if exchanged == whose.is_empty() { "reference_mismatched" } else { "mismatched" };
        let split = |label| sides(rows, &answers(&rows[format!("{whose}completions")]), label);
        Given { chosen: split(true), rejected: split(false), mismatched: Some(answers(&rows[other])) }
    }

    /// TRL's gradient with respect to each token of the chosen and of the rejected answers.
    fn gradients(&self) -> [Answers; 2] {
        match self.found.get("gradient_completions") {
            None => ["gradient_chosen", "gradient_rejected"].map(|name| answers(&self.found[name])),
            Some(all) => [true, false].map(|label| sides(&self.fixture.0["unpaired"], &answers(all), label)),
        }
    }
}

/// The answers with this label, an empty one in the place of each other.
fn sides(rows: &Value, all: &Answers, label: bool) -> Answers {
    let labels = rows["labels"].as_array().expect("labels").iter();
    labels.zip(all).map(|(l, answer)| if *l == label { answer.clone() } else { ABSENT.to_vec() }).collect()
}

/// Keys that do nothing in TRL beside this loss; a recipe of mdpo may not hold them.
fn idle(case: &Case<'_>) -> &'static [&'static str] {
    match case.arguments().get("loss_type").and_then(Value::as_str) {
        Some("sft") => &["beta", "f_divergence_type", "ld_alpha"],
        Some("sigmoid") if case.trainer() == "DPOTrainer" => &["label_smoothing"],
        _ => &[],
    }
}

/// The recipe that means what the case's arguments mean in TRL.
fn recipe(case: &Case<'_>) -> Map<String, Value> {
    let mut keys = case.arguments().clone();
    keys.retain(|key, _| !idle(case).contains(&key.as_str()));
    let loss = keys.get("loss_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match (case.trainer(), loss.as_str()) {
        ("ORPOTrainer", _) => drop(keys.insert("loss_type".to_owned(), json!("orpo"))),
        ("CPOTrainer", "sigmoid") => drop(keys.insert("loss_type".to_owned(), json!("cpo"))),
        // TRL adds the likelihood to SimPO unless told not to; here SimPO is SimPO, and the weight is written.
        ("CPOTrainer", "simpo") => drop(keys.entry("cpo_alpha").or_insert(json!(1.0))),
        // CPO's other losses are DPO's without a reference, beside `sft`.
        ("CPOTrainer", "hinge" | "ipo") => {
            let weight = keys.remove("cpo_alpha").unwrap_or(json!(1.0));
            keys.insert("loss_type".to_owned(), json!([loss, "sft"]));
            keys.insert("loss_weights".to_owned(), json!([1.0, weight]));
            keys.insert("reference_free".to_owned(), json!(true));
        }
        _ => {}
    }
    keys
}

fn read(keys: &Map<String, Value>) -> mdpo::Result<Objective> {
    let lines: String = keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    let rest = "model_name_or_path: .\ndataset_name: none.jsonl\noutput_dir: none\n";
    Ok(Run::from_yaml(&format!("{rest}{lines}"), "losses.json", &[])?.objective)
}

#[track_caller]
fn objective(keys: &Map<String, Value>) -> Objective {
    read(keys).unwrap_or_else(|error| panic!("{keys:?}: {error}"))
}

/// The weight of each label of an answer that stands beside one of `other` labels.
fn label_weights(objective: &Objective, labels: usize, other: usize) -> Vec<f64> {
    let shared = labels.min(other);
    let cut = match objective.needs().spans {
        Spans::Whole => vec![labels],
        Spans::SharedLength => vec![shared, labels - shared],
        Spans::Turns { .. } => panic!("TRL knows no turns"),
    };
    let spans: Vec<SpanOf> =
        cut.iter().filter(|n| **n > 0).map(|&labels| SpanOf { labels, kind: SpanKind::Whole }).collect();
    let weights = objective.span_weights(&spans, other);
    assert_eq!(weights.len(), spans.len());
    spans.iter().zip(weights).flat_map(|(span, weight)| vec![weight; span.labels]).collect()
}

/// The weights of all labels of the answers `own`, each beside its answer among `others`.
fn weights(objective: &Objective, own: &Answers, others: &Answers) -> Answers {
    own.iter().zip(others).map(|(own, other)| label_weights(objective, own.len(), other.len())).collect()
}

/// Weighted sums, one per answer.
fn sums(answers: &Answers, weights: &Answers) -> Tensor {
    let sum = |(values, weights): (&Vec<f64>, &Vec<f64>)| values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>();
    Tensor::from_slice(&answers.iter().zip(weights).map(sum).collect::<Vec<f64>>())
}

fn lengths(answers: &Answers) -> Tensor {
    Tensor::from_slice(&answers.iter().map(|answer| answer.len() as f64).collect::<Vec<f64>>())
}

/// The views that the objective says it needs, and no other.
fn views(objective: &Objective, given: &Given) -> Views {
    let needs = objective.needs();
    let whole = |answers: &Answers| sums(answers, &answers.iter().map(|answer| vec![1.0; answer.len()]).collect());
    let mismatched = || whole(given.mismatched.as_ref().expect("mismatched answers"));
    Views {
        chosen: sums(&given.chosen, &weights(objective, &given.chosen, &given.rejected)),
        rejected: needs.rejected.then(|| sums(&given.rejected, &weights(objective, &given.rejected, &given.chosen))),
        corrupted: None,
        mismatched: needs.mismatched.then(mismatched),
    }
}

/// The gradient of each token from those of the weighted sums.
fn per_token(sum: &Tensor, weights: &Answers) -> Answers {
    let gradient = sum.grad();
    let of = |pair: usize| if gradient.defined() { gradient.double_value(&[pair as i64]) } else { 0.0 };
    weights.iter().enumerate().map(|(pair, weights)| weights.iter().map(|w| of(pair) * w).collect()).collect()
}

/// The whole batch of a case, the policy's sums with gradients.
fn batch(case: &Case<'_>, objective: &Objective) -> (Pairs, StepTotals) {
    let (given, reference) = (case.given(""), case.given("reference_"));
    let policy = views(objective, &given);
    for view in [Some(&policy.chosen), policy.rejected.as_ref()].into_iter().flatten() {
        let _ = view.set_requires_grad(true);
    }
    let (chosen, rejected) = (lengths(&given.chosen), lengths(&given.rejected));
    let total = |lengths: &Tensor| lengths.sum(Kind::Double).double_value(&[]) as usize;
    let there = |lengths: &Tensor| lengths.gt(0.0).to_kind(Kind::Double);
    let has = Sides { chosen: there(&chosen), rejected: there(&rejected) };
    let step = StepTotals {
        pairs: given.chosen.len(),
        chosen_tokens: total(&chosen),
        answers: total(&has.chosen) + total(&has.rejected),
    };
    let reference = objective.needs().reference.then(|| views(objective, &reference));
    let (has_image, tokens) = (chosen.zeros_like(), Sides { chosen, rejected });
    (Pairs { policy, reference, has_image, has, tokens, scores: None, rewards: None, values: None }, step)
}

/// The loss of the whole batch and its gradients.
fn evaluate(case: &Case<'_>, objective: &Objective) -> Ours {
    let (pairs, step) = batch(case, objective);
    let terms = objective.terms(&pairs, step);
    let mean = |values: &Tensor| values.sum(Kind::Double) / step.pairs as f64;
    let loss = terms.iter().map(|term| mean(&term.values) * term.weight).reduce(|a, b| a + b).expect("a term");
    loss.backward();
    let given = case.given("");
    let rejected = match &pairs.policy.rejected {
        Some(view) => per_token(view, &weights(objective, &given.rejected, &given.chosen)),
        None => given.rejected.iter().map(|answer| vec![0.0; answer.len()]).collect(),
    };
    Ours {
        loss: loss.double_value(&[]),
        terms: terms.iter().map(|term| (term.name, mean(&term.values).double_value(&[]))).collect(),
        chosen: per_token(&pairs.policy.chosen, &weights(objective, &given.chosen, &given.rejected)),
        rejected,
    }
}

/// Largest difference of the gradients, and the largest entry of the first.
fn gradient_gap(expected: &[Answers; 2], ours: &Ours) -> (f64, f64) {
    let found = ours.chosen.iter().chain(&ours.rejected);
    let (mut gap, mut largest) = (0.0_f64, 0.0_f64);
    for (expected, found) in expected.iter().flatten().zip(found) {
        assert_eq!(expected.len(), found.len());
        for (e, f) in expected.iter().zip(found) {
            gap = gap.max((e - f).abs());
            largest = largest.max(e.abs());
        }
    }
    (gap, largest)
}

/// Compares a case and gives the differences of value and gradient, each as a share of what TRL has.
#[track_caller]
fn compare(case: &Case<'_>, ours: &Ours, expected_loss: f64) -> (f64, f64) {
    let value = (ours.loss - expected_loss).abs() / expected_loss.abs();
    let (gap, largest) = gradient_gap(&case.gradients(), ours);
    let gradient = gap / largest;
    let (value_limit, gradient_limit) = if case.is_single() { (1e-6, 3e-6) } else { (1e-13, 1e-13) };
    assert!(
        value <= value_limit && gradient <= gradient_limit,
        "{}: {} for {expected_loss}, {value:.1e} off; gradients {gradient:.1e} off",
        case.name(),
        ours.loss
    );
    (value, gradient)
}

/// Losses and options that mdpo does not have.
fn is_absent(case: &Case<'_>) -> bool {
    case.arguments().contains_key("alpha")
}

/// With a longer prompt TRL's ORPO counts the prompt into its likelihood.
fn counts_the_prompt(case: &Case<'_>) -> bool {
    case.found["prompt"].as_array().is_some_and(|prompt| !prompt.is_empty())
}

/// `sft` in a list beside `ld_alpha`: TRL weighs the labels for the other losses and not for `sft`.
fn weighs_some_losses(case: &Case<'_>) -> bool {
    case.arguments().contains_key("ld_alpha") && case.arguments()["loss_type"].is_array()
}

#[test]
fn values_and_gradients_are_those_of_trl() {
    let fixture = Fixture::open();
    let mut worst = [[0.0_f64; 2]; 2];
    let mut seen = BTreeSet::new();
    for case in fixture.cases() {
        if is_absent(&case) || counts_the_prompt(&case) || weighs_some_losses(&case) {
            continue;
        }
        let ours = evaluate(&case, &objective(&recipe(&case)));
        let (value, gradient) = compare(&case, &ours, case.loss());
        let worst = &mut worst[usize::from(case.is_single())];
        *worst = [worst[0].max(value), worst[1].max(gradient)];
        println!("{}: value {value:.1e}, gradient {gradient:.1e}", case.name());
        let loss = case.arguments().get("loss_type").and_then(Value::as_str).unwrap_or_default();
        seen.insert(format!("{} {loss}", case.trainer()));
    }
    println!("worst in f64 {:?}, in f32 {:?}", worst[0], worst[1]);
    // The 15 of DPO and lists of them, 2 of KTO, 4 of CPO, ORPO.
    assert_eq!(seen.len(), 23, "{seen:?}");
}

/// The rewards that both log, as means over the answers: β times the log-ratio, whatever the divergence.
#[test]
fn rewards_are_those_of_trl() {
    let fixture = Fixture::open();
    let mut compared = 0;
    for case in fixture.cases() {
        // Said as `ipo` without a reference, CPO's `ipo` has the rewards of DPO: of sums, not of means.
        let is_cpo_ipo = case.trainer() == "CPOTrainer" && case.arguments()["loss_type"] == "ipo";
        if is_absent(&case) || weighs_some_losses(&case) || is_cpo_ipo {
            continue;
        }
        let objective = objective(&recipe(&case));
        let (pairs, _) = batch(&case, &objective);
        let Some(rewards) = objective.rewards(&pairs) else { continue };
        let rejected = rewards.rejected.expect("rewards of the rejected answers");
        for (name, values, has) in
            [("chosen", rewards.chosen, &pairs.has.chosen), ("rejected", rejected, &pairs.has.rejected)]
        {
            let mean = ((values * has).sum(Kind::Double) / has.sum(Kind::Double)).double_value(&[]);
            let expected = case.metric(&format!("rewards/{name}"));
            let limit = if case.is_single() { 1e-6 } else { 1e-13 };
            assert!((mean - expected).abs() < limit, "{}, {name}: {mean} for {expected}", case.name());
        }
        compared += 1;
    }
    assert!(compared > 70, "only {compared}");
}

/// TRL takes such a key and does nothing with it; mdpo says so.
#[test]
fn keys_that_do_nothing_in_trl_are_refused() {
    let fixture = Fixture::open();
    let mut refused = 0;
    for case in fixture.cases() {
        let keys = case.arguments();
        for key in keys.keys().filter(|key| idle(&case).contains(&key.as_str())) {
            let message = read(keys).expect_err(case.name()).to_string();
            assert!(message.contains(&format!("`{key}`")), "{}: {message}", case.name());
            refused += 1;
        }
    }
    assert_eq!(refused, 7);
}

/// By design: a log-prob is one weighted sum of its labels for all losses of a list, and TRL's `sft` counts each label as 1.
#[test]
fn a_list_with_sft_takes_no_ld_alpha() {
    let fixture = Fixture::open();
    let mut refused = 0;
    for case in fixture.cases().filter(weighs_some_losses) {
        let message = read(case.arguments()).expect_err(case.name()).to_string();
        assert!(message.contains("`ld_alpha`") && message.contains("`sft`"), "{}: {message}", case.name());
        refused += 1;
    }
    assert_eq!(refused, 1);
}

/// By design: AlphaPO's transformed rewards are not there, and a recipe that asks for them is no other loss.
#[test]
fn what_is_not_there_is_refused() {
    let fixture = Fixture::open();
    let refused = fixture.cases().filter(is_absent).map(|case| read(case.arguments()).expect_err(case.name()));
    assert_eq!(refused.count(), 2);
}

/// TRL logs z₀ as a log-ratio, mdpo as a reward.
#[test]
fn the_reference_point_of_kto_is_that_of_trl() {
    let fixture = Fixture::open();
    let (mut above, mut zero) = (0, 0);
    for case in fixture.cases().filter(|case| case.name().starts_with("kto kto")) {
        let objective = objective(&recipe(&case));
        let (pairs, _) = batch(&case, &objective);
        let observed = objective.observations(&pairs);
        let z0 = observed.iter().find(|figure| figure.name == "kto/z0").expect("z₀");
        let expected = objective.beta().expect("β") * case.metric("kl");
        assert!((z0.sum / z0.count - expected).abs() < 1e-12, "{}: {z0:?} for {expected}", case.name());
        *(if expected > 0.0 { &mut above } else { &mut zero }) += 1;
    }
    assert_eq!((above, zero), (3, 3));
}

/// TRL's own values of `sigmoid` give conservative DPO: (1 − ε)·f(x) + ε·f(−x) = f(x) + ε·x, for f(x) = −log σ(x).
#[test]
fn cdpo_is_what_trl_would_have_smoothed() {
    let fixture = Fixture::open();
    let case = fixture.case("dpo sigmoid, label_smoothing 0.2");
    let keys = json!({"loss_type": "cdpo", "label_smoothing": 0.2});
    let ours = evaluate(&case, &objective(keys.as_object().expect("keys")));
    let expected = case.loss() + 0.2 * case.metric("rewards/margins");
    assert!((ours.loss - expected).abs() < 1e-12, "{} for {expected}", ours.loss);
}

/// By design: mdpo's likelihood is that of the chosen answer, TRL's that of the prompt too, all but its first token. Nothing else differs.
#[test]
fn orpo_differs_from_trl_by_the_likelihood_of_the_prompt() {
    let fixture = Fixture::open();
    let mut seen = 0;
    for case in fixture.cases().filter(counts_the_prompt) {
        let ours = evaluate(&case, &objective(&recipe(&case)));
        let prompt: Vec<f64> = serde_json::from_value(case.found["prompt"].clone()).expect("numbers");
        let chosen = case.given("").chosen;
        let (answer, labels): (f64, usize) = (chosen.iter().flatten().sum(), chosen.iter().map(Vec::len).sum());
        let prompts = prompt.iter().sum::<f64>() * chosen.len() as f64;
        let own = -answer / labels as f64;
        let with_prompt = -(answer + prompts) / (labels + prompt.len() * chosen.len()) as f64;
        assert!((with_prompt - case.metric("nll_loss")).abs() < 1e-6, "TRL's likelihood is not {with_prompt}");
        assert!(ours.terms.iter().any(|(name, value)| *name == "nll" && (value - own).abs() < 1e-12));
        assert!((ours.loss - own + with_prompt - case.loss()).abs() < 1e-6, "{}", case.name());
        seen += 1;
    }
    assert_eq!(seen, 2);
}

//! Objectives as recipes ask for them, and `docs/objectives.md` beside the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::names::{KEYS_OF_LOSSES, KEYS_OF_OBJECTIVES, LOSS_TYPES};
use super::*;
use crate::config::tests::{bad, good};

#[test]
fn contradictions_of_objectives_are_refused() {
    for (lines, expected) in [
        ("loss_type: sigmoid\nlabel_smoothing: 0.1", "`label_smoothing` belongs to `loss_type: cdpo`, `exo_pair`"),
        ("label_smoothing: 0.1", "or write `loss_type: cdpo`"),
        ("loss_type: cdpo", "`cdpo` needs a `label_smoothing` above 0"),
        ("loss_type: [dpo, exo_pair]", "`exo_pair` needs a `label_smoothing` above 0"),
        ("loss_type: [dpo, simpo]", "only losses of DPO's family are added up, and `simpo` is none"),
        ("loss_type: [dpo, mdpo]", "`mdpo` is none"),
        ("loss_type: [dpo, sft, sigmoid]", "`dpo` stands twice"),
        ("loss_type: [dpo, sft]\nloss_weights: [1]", "`loss_weights`: expected 2, as many as `loss_type` has, found 1"),
        ("loss_type: [dpo, sft]\nloss_weights: [0, 0]", "`loss_weights` are all 0"),
        ("loss_weights: [1]", "`loss_weights` belongs to the losses of DPO's family"),
        ("loss_type: sft\nloss_weights: 2", "`loss_weights` belongs to"),
        ("loss_type: dpo\nf_alpha_divergence_coef: 2", "belongs to `f_divergence_type: alpha_divergence`"),
        ("loss_type: kto\nf_divergence_type: forward_kl", "`f_divergence_type` belongs to the losses of DPO's family"),
        (
            "loss_type: bco_pair\nf_divergence_type: forward_kl",
            "`f_divergence_type` does not go with `loss_type: bco_pair`",
        ),
        ("loss_type: aot\nf_divergence_type: js_divergence", "does not go with `loss_type: aot`"),
        ("loss_type: simpo\nld_alpha: 0.5", "`ld_alpha` belongs to"),
        ("loss_type: [dpo, sft]\nld_alpha: 0.5", "`ld_alpha` does not go with `sft`"),
        ("loss_type: dpo\nld_alpha: 0.5\nreference_logps: columns", "the labels of a response are weighted"),
        ("loss_type: dmpo\nreference_logps: columns", "the labels of a response are weighted"),
        ("loss_type: kto\nreference_logps: columns", "have nothing of the other rows' answers"),
        ("loss_type: dmpo\ntruncation_mode: keep_start", "cuts within a turn"),
        ("loss_type: dpo\nodpo_ties: skip", "`odpo_ties` belongs to `loss_type: odpo`"),
        ("loss_type: ipo\ndiscopop_tau: 0.1", "`discopop_tau` belongs to `loss_type: discopop`"),
        ("reference_free: true", "`reference_free` belongs to"),
        ("loss_type: dpo\nreference_free: true\nreference_cache: kept", "does not go with `reference_free: true`"),
        (
            "loss_type: simpo\nadapter_name_or_path: a\nreference: base",
            "`reference` does not go with `loss_type: simpo`",
        ),
        ("loss_type: orpo\nprecompute_ref_log_probs: true", "does not go with `loss_type: orpo`"),
        ("loss_type: cpo\nsimpo_gamma: 1", "`simpo_gamma` belongs to `loss_type: simpo`"),
        ("loss_type: dpo\ncpo_alpha: 1", "`cpo_alpha` belongs to `loss_type: cpo`, `simpo`"),
        ("loss_type: dpo\ndesirable_weight: 2", "`desirable_weight` belongs to `loss_type: kto`, `apo_zero_unpaired`"),
        ("loss_type: kto\ndesirable_weight: 0\nundesirable_weight: 0", "are both 0"),
        ("loss_type: dpo\nodpo_alpha: 1", "`odpo_alpha` belongs to `loss_type: odpo`"),
        ("loss_type: odpo\ndmpo_gamma: 1", "`dmpo_gamma` belongs to `loss_type: dmpo`"),
        ("loss_type: hpo", "needs `rewards`"),
        ("loss_type: kto\nrewards: {a: 1}", "`rewards` belongs to `loss_type: hpo`"),
        ("loss_type: hpo\nrewards: {a: 1}\nhpo_preference: ipo\ndesirable_weight: 2", "`desirable_weight` belongs to"),
        ("loss_type: mDPO", "did you mean `mdpo`?"),
        ("loss_type: [dpo, Ipo]", "did you mean `ipo`?"),
        ("loss_type: hpo\nrewards: {a:1}", "YAML wants a space after the colon"),
        ("loss_type: hpo\nrewards: {a: 1}\nhpo_preference: exo_pair", "`exo_pair` needs a `label_smoothing` above 0"),
    ] {
        let message = bad(lines, &[]);
        assert!(message.contains(expected), "{lines}\n{message}");
        assert!(message.starts_with("recipe.yaml line "), "one problem, with its line: {lines}\n{message}");
        assert!(message.contains("hint: "), "{message}");
    }
}

#[test]
fn values_of_an_objective_out_of_range_are_refused() {
    for (objective, line) in [
        ("[dpo, sft]", "loss_weights: [1, -1]"),
        ("dpo", "ld_alpha: 1.5"),
        ("dpo", "f_divergence_type: kl"),
        ("robust", "label_smoothing: 0.5"),
        ("hpo", "rewards: [a]"),
        ("dpo", "reference_free: perhaps"),
        ("discopop", "discopop_tau: 0"),
        ("simpo", "simpo_gamma: -1"),
        ("cpo", "cpo_alpha: -1"),
        ("kto", "desirable_weight: -1"),
        ("odpo", "odpo_alpha: -1"),
        ("odpo", "odpo_offset: sqrt"),
        ("dmpo", "dmpo_gamma: 1.1"),
        ("dmpo", "dmpo_eos: none"),
        ("hpo", "rewards: {}"),
        ("hpo", "rewards: {a: 0}"),
        ("hpo\nrewards: {a: 1}", "hpo_preference: sft"),
        ("hpo\nrewards: {a: 1}", "hpo_preference: mdpo"),
        ("hpo\nrewards: {a: 1}", "hpo_tau: 1"),
        ("hpo\nrewards: {a: 1}", "hpo_lambda: 0"),
        ("hpo\nrewards: {a: 1}", "hpo_weight_clip: 0"),
        ("hpo\nrewards: {a: 1}", "hpo_logps: mean"),
        ("hpo\nrewards: {a: 1}", "hpo_value_weight: 0"),
        ("hpo\nrewards: {a: 1}", "hpo_value_learning_rate: 0"),
    ] {
        let message = bad(&format!("loss_type: {objective}\n{line}"), &[]);
        let key = line.split(':').next().expect("a key");
        assert!(
            message.starts_with("recipe.yaml line ") && message.contains(&format!("`{key}`: expected ")),
            "{message}"
        );
    }
}

#[test]
fn objectives_are_read_with_their_settings() {
    let of = |lines: &str| good(lines, &[]).objective;
    let mpo = of("loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1.0]");
    let weighted = |loss, weight| Weighted { loss, weight };
    let losses = vec![weighted(DpoLoss::Sigmoid, 0.8), weighted(DpoLoss::BcoPair, 0.2), weighted(DpoLoss::Sft, 1.0)];
    assert_eq!(mpo, Objective::Dpo(Dpo { losses, ..Dpo::of(DpoLoss::Sigmoid, 0.1) }));
    assert_eq!(mpo.name(), "dpo + bco_pair + sft");
    assert_eq!(of("loss_type: [sft]"), Objective::Sft);
    assert_eq!(
        of("loss_type: robust\nlabel_smoothing: 0.2"),
        Objective::Dpo(Dpo::of(DpoLoss::Robust { label_smoothing: 0.2 }, 0.1))
    );
    let alpha = of("loss_type: ipo\nf_divergence_type: alpha_divergence\nld_alpha: 0.4\nreference_free: true");
    let Objective::Dpo(alpha) = alpha else { panic!("{alpha:?}") };
    assert_eq!((alpha.divergence, alpha.ld_alpha), (Divergence::Alpha { coefficient: 0.5 }, Some(0.4)));
    assert!(alpha.reference_free && !Objective::Dpo(alpha).compares());
    let nll = |lines: &str| match of(lines) {
        Objective::Simpo(simpo) => simpo.nll_weight,
        Objective::Cpo(cpo) => cpo.nll_weight,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        [nll("loss_type: simpo"), nll("loss_type: cpo"), nll("loss_type: simpo\ncpo_alpha: 1")],
        [0.0, 1.0, 1.0]
    );
    let kto = of("pref_loss: kto\nkto_chosen_weight: 2");
    let point = ReferencePoint::Mismatched;
    assert_eq!(kto, Objective::Kto(Kto { beta: 0.1, desirable_weight: 2.0, undesirable_weight: 1.0, point }));
    let Objective::Hpo(hpo) = of("loss_type: upo\nrewards: {b: 0.95, a: -0.05}") else { panic!("upo is hpo") };
    let reward = |name: &str, weight| Reward { name: name.to_owned(), weight };
    assert_eq!(hpo.rewards, [reward("b", 0.95), reward("a", -0.05)]);
    assert!(matches!(hpo.preference, HpoPreference::Kto(_)));
}

/// What `docs/objectives.md` says in one section: its table by first cell.
struct Section {
    title: String,
    rows: Vec<(String, String)>,
    text: String,
}

impl Section {
    fn read(text: &str) -> Section {
        let mut rows = Vec::new();
        for line in text.lines() {
            let cells = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")?.split_once(" | "));
            rows.extend(cells.map(|(first, second)| (first.to_owned(), second.to_owned())));
        }
        Section { title: text.lines().next().unwrap_or_default().to_owned(), rows, text: text.to_owned() }
    }

    fn row(&self, name: &str) -> &str {
        let found = self.rows.iter().find(|(first, _)| first == name);
        &found.unwrap_or_else(|| panic!("`{}` has no row `{name}`", self.title)).1
    }
}

/// The words in backticks.
fn ticked(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The sections that are about objectives.
fn sections() -> Vec<Section> {
    let text = include_str!("../../../../../docs/objectives.md");
    let all = text.split("\n## ").skip(1).map(Section::read);
    all.filter(|section| section.rows.iter().any(|(first, _)| first == "`loss_type`")).collect()
}

#[test]
fn the_documentation_has_every_objective_with_its_keys_and_a_recipe() {
    let mut described = Vec::new();
    for section in sections() {
        let names: Vec<Name> = LOSS_TYPES
            .iter()
            .filter(|(text, _)| ticked(section.row("`loss_type`")).contains(text))
            .map(|(_, name)| *name)
            .collect();
        described.extend(ticked(section.row("`loss_type`")).into_iter().map(str::to_owned));
        let owned = KEYS_OF_OBJECTIVES
            .iter()
            .chain(KEYS_OF_LOSSES)
            .filter(|owned| names.iter().any(|name| owned.by.contains(name)));
        let keys: BTreeSet<&str> = owned.map(|owned| owned.key).collect();
        let said: BTreeSet<&str> = ticked(section.row("keys")).into_iter().filter(|key| *key != "beta").collect();
        let shared = ["f_alpha_divergence_coef", "rejected_image"];
        assert_eq!(
            said.iter().copied().filter(|key| !shared.contains(key)).collect::<BTreeSet<_>>(),
            keys,
            "{}",
            section.title
        );
        for row in ["paper", "rows", "terms", "settings of the paper", "here"] {
            assert!(!section.row(row).is_empty(), "{}: {row}", section.title);
        }
        assert!(section.text.contains("\n```text\n"), "{}: no formula", section.title);
        let recipe = ticked(section.row("recipe")).into_iter().next().unwrap_or_default().to_owned();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(&recipe);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let run = crate::config::Run::from_yaml(&text, &recipe, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert!(run.objective.names().iter().all(|name| names.contains(name)), "{recipe} is of another section");
    }
    described.sort_unstable();
    let mut all: Vec<&str> = LOSS_TYPES.iter().map(|(name, _)| *name).collect();
    all.sort_unstable();
    assert_eq!(described, all);
}

#[test]
fn recipes_in_the_documentation_are_valid() {
    let mut count = 0;
    for section in sections() {
        for lines in section.text.split("\n```yaml\n").skip(1).filter_map(|rest| rest.split("\n```").next()) {
            good(lines, &[]);
            count += 1;
        }
    }
    assert!(count > 3, "{count}");
}

pub(in crate::config) fn share() -> impl Strategy<Value = f64> {
    0.0..1.0
}

pub(in crate::config) fn positive() -> impl Strategy<Value = f64> {
    prop_oneof![1e-12..1e-3, 1e-3..1e3]
}

/// Losses of DPO's family with one smoothing, each once.
fn dpo_losses() -> impl Strategy<Value = Vec<DpoLoss>> {
    (0.01..0.49, positive()).prop_flat_map(|(label_smoothing, tau)| {
        let all = vec![
            DpoLoss::Sigmoid,
            DpoLoss::Cdpo { label_smoothing },
            DpoLoss::Hinge,
            DpoLoss::Ipo,
            DpoLoss::ExoPair { label_smoothing },
            DpoLoss::NcaPair,
            DpoLoss::Robust { label_smoothing },
            DpoLoss::BcoPair,
            DpoLoss::SppoHard,
            DpoLoss::Aot { label_smoothing },
            DpoLoss::AotUnpaired { label_smoothing },
            DpoLoss::ApoZero,
            DpoLoss::ApoDown,
            DpoLoss::Discopop { tau },
            DpoLoss::SigmoidNorm,
        ];
        prop::sample::subsequence(all, 1..4)
    })
}

fn dpo() -> impl Strategy<Value = Dpo> {
    let options = (positive(), share(), prop::option::of(share()), any::<bool>(), any::<bool>());
    (dpo_losses(), options).prop_map(|(losses, (beta, weight, ld_alpha, reference_free, with_sft))| {
        let mut losses: Vec<Weighted> = losses.into_iter().map(|loss| Weighted { loss, weight: 1.0 }).collect();
        if with_sft {
            losses.push(Weighted { loss: DpoLoss::Sft, weight });
        }
        let ld_alpha = ld_alpha.filter(|_| !with_sft);
        Dpo { losses, ld_alpha, reference_free, ..Dpo::of(DpoLoss::Sigmoid, beta) }
    })
}

fn divergent() -> impl Strategy<Value = Dpo> {
    let divergences = prop_oneof![
        Just(Divergence::ForwardKl),
        Just(Divergence::JensenShannon),
        share().prop_map(|coefficient| Divergence::Alpha { coefficient })
    ];
    let losses = prop::sample::select(vec![DpoLoss::Sigmoid, DpoLoss::Hinge, DpoLoss::Ipo, DpoLoss::SigmoidNorm]);
    (divergences, losses, positive()).prop_map(|(divergence, loss, beta)| Dpo { divergence, ..Dpo::of(loss, beta) })
}

fn kto() -> impl Strategy<Value = Kto> {
    let point = prop::sample::select(vec![ReferencePoint::Mismatched, ReferencePoint::Zero]);
    (positive(), positive(), share(), point).prop_map(|(beta, desirable_weight, undesirable_weight, point)| Kto {
        beta,
        desirable_weight,
        undesirable_weight,
        point,
    })
}

fn hpo() -> impl Strategy<Value = Hpo> {
    let dpo = (dpo_losses(), positive()).prop_map(|(losses, beta)| HpoPreference::Dpo(Dpo::of(losses[0], beta)));
    let preference = prop_oneof![kto().prop_map(HpoPreference::Kto), dpo];
    let rewards = prop::collection::btree_map("[a-z]{2,5}_score", positive(), 1..4)
        .prop_map(|map| map.into_iter().map(|(name, weight)| Reward { name, weight }).collect());
    let log_probs = prop::sample::select(vec![Reduction::Sum, Reduction::TokenMean]);
    let numbers = (share(), positive(), 0.01..0.99, positive(), positive(), positive());
    (preference, rewards, log_probs, numbers).prop_map(
        |(preference, rewards, log_probs, (gamma, lambda, tau, value_weight, weight_clip, value_learning_rate))| Hpo {
            preference,
            rewards,
            gamma,
            lambda,
            tau,
            value_weight,
            weight_clip,
            log_probs,
            value_learning_rate,
        },
    )
}

pub(in crate::config) fn objective() -> impl Strategy<Value = Objective> {
    let anchors = prop::sample::subsequence(vec![Anchor::Chosen, Anchor::Rejected, Anchor::Corrupted], 1..=3);
    let mdpo = (positive(), positive(), share(), share(), -5.0..5.0, anchors);
    let offsets = prop::sample::select(vec![Offset::Log, Offset::Identity, Offset::Ratio]);
    let eos = prop::sample::select(vec![TurnEos::Discounted, TurnEos::Undiscounted]);
    prop_oneof![
        dpo().prop_map(Objective::Dpo),
        divergent().prop_map(Objective::Dpo),
        Just(Objective::Sft),
        mdpo.prop_map(|(beta, preference_weight, conditional_weight, anchor_weight, delta, anchors)| {
            Objective::Mdpo(Mdpo { beta, preference_weight, conditional_weight, anchor_weight, delta, anchors })
        }),
        (positive(), share(), 0.0..0.5, share()).prop_map(|(beta, gamma, label_smoothing, nll_weight)| {
            Objective::Simpo(Simpo { beta, gamma, label_smoothing, nll_weight })
        }),
        positive().prop_map(|beta| Objective::Orpo { beta }),
        (positive(), 0.0..0.5, share()).prop_map(|(beta, label_smoothing, nll_weight)| Objective::Cpo(Cpo {
            beta,
            label_smoothing,
            nll_weight
        })),
        kto().prop_map(Objective::Kto),
        (positive(), share(), offsets).prop_map(|(beta, alpha, offset)| Objective::Odpo(Odpo { beta, alpha, offset })),
        (positive(), share(), eos).prop_map(|(beta, gamma, eos)| Objective::Dmpo(Dmpo { beta, gamma, eos })),
        hpo().prop_map(Objective::Hpo),
    ]
}

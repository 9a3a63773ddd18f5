//! Keys of evaluation: what they mean, and any evaluation for reading back.

use proptest::prelude::*;
use std::num::NonZeroUsize;

use super::tests::{bad, good, name};
use super::*;

#[test]
fn keys_of_evaluation_mean_what_they_mean_in_transformers() {
    let evaluation = |lines: &str| good(lines, &[]).evaluation.expect("the run is evaluated");
    let found = evaluation("eval_strategy: steps\nval_set_size: 0.05\nlogging_steps: 7");
    assert_eq!((found.when, found.held_out), (EvaluateWhen::Steps(7), HeldOut::Share(0.05)));
    assert_eq!((found.per_device, found.best), (8, None));
    let found = evaluation("eval_strategy: epoch\nval_size: 20\nmetric_for_best_model: rewards/margins");
    assert_eq!((found.when, found.held_out), (EvaluateWhen::EachEpoch, HeldOut::Rows(20)));
    let best = found.best.expect("a metric");
    assert_eq!((best.metric.as_str(), best.better, best.ends_with), ("eval_rewards/margins", None, EndsWith::Last));
    let best = evaluation("eval_strategy: steps\nval_size: 1\nload_best_model_at_end: true").best.expect("a metric");
    assert_eq!((best.metric.as_str(), best.ends_with), ("eval_loss", EndsWith::Best));
    let best = evaluation("eval_strategy: steps\nval_size: 1\nearly_stopping_steps: 3").best.expect("a metric");
    assert_eq!(best.early_stopping, Some(EarlyStopping { patience: 3, threshold: 0.0 }));
    // What says how an evaluation would be does no harm without one.
    assert_eq!(
        good("eval_steps: 5\nper_device_eval_batch_size: 4\nval_size: 0\neval_strategy: no", &[]).evaluation,
        None
    );
}

#[test]
fn every_benchmark_that_is_none_is_told_by_its_number() {
    let entries = "[objects, {name: pope, data: p, limt: 3}, {name: pope}, {name: 7, data: p}, {name: pope, data: p, limit: 0}, \
        {name: chair, data: c}, {name: chair, data: d}, {name: amber-generative, data: a, folder: b}]";
    let said = super::tests::bad(&format!("eval_strategy: steps\neval_benchmarks: {entries}"), &[]);
    insta::assert_snapshot!(said);
}

#[test]
fn a_judge_is_named_where_a_benchmark_needs_one_and_nowhere_else() {
    let asks = "eval_strategy: steps\neval_benchmarks: [{name: mmhal, data: bench}]";
    let named = "judge_url: http://localhost:8000/v1\njudge_model: qwen\njudge_key_env: JUDGE_KEY";
    let judge = good(&format!("{asks}\n{named}"), &[]).evaluation.expect("the run is evaluated").judge;
    let judge = judge.expect("a judge");
    assert_eq!((judge.url.as_str(), judge.model.as_str()), ("http://localhost:8000/v1", "qwen"));
    assert_eq!((judge.key_env.as_deref(), judge.concurrency.get(), judge.cache), (Some("JUDGE_KEY"), 4, None));
    let message = bad(asks, &[]);
    for key in ["judge_url", "judge_model"] {
        assert!(message.contains(&format!("`mmhal` needs a judge, and there is no `{key}`")), "{message}");
    }
    let idle = "eval_strategy: steps\nval_size: 9\njudge_model: qwen";
    assert!(bad(idle, &[]).contains("`judge_model` has no meaning unless `mmhal` is in `eval_benchmarks`"));
    assert!(bad("judge_url: http://localhost", &[]).contains("`judge_url` has no meaning without an evaluation"));
    // A key in the place of its variable's name would end up on the disk.
    let message = bad(&format!("{asks}\n{named}").replace("JUDGE_KEY", "sk-12-ab"), &[]);
    assert!(message.contains("expected the name of an environment variable"), "{message}");
}

/// Evaluations that go with any way to save: none ends with its best model but those that are saved where they are.
pub(super) fn evaluation(save: Save) -> impl Strategy<Value = Option<Evaluation>> {
    let held_out = prop_oneof![
        Just(HeldOut::Nothing),
        prop::collection::vec(name().prop_map(PathBuf::from), 1..3).prop_map(HeldOut::Files),
        (1e-6..0.99).prop_map(HeldOut::Share),
        (1..99_usize).prop_map(HeldOut::Rows),
    ];
    let stopping = (1..9_usize, 0.0..2.0).prop_map(|(patience, threshold)| EarlyStopping { patience, threshold });
    let better = prop::sample::select(vec![None, Some(Direction::Lower), Some(Direction::Higher)]);
    let best = ("[a-z/_]{1,9}", better, any::<bool>(), prop::option::of(stopping));
    let best = best.prop_map(|(metric, better, ends_with_best, early_stopping)| {
        let ends_with = if ends_with_best { EndsWith::Best } else { EndsWith::Last };
        Best { metric: format!("eval_{metric}"), better, ends_with, early_stopping }
    });
    let judge = (name(), name(), prop::option::of("[A-Z_]{1,9}"), 1..9_usize, prop::option::of(name()));
    let judge = judge.prop_map(|(url, model, key_env, concurrency, folder)| Judge {
        url,
        model,
        key_env,
        concurrency: NonZeroUsize::new(concurrency).expect("not zero"),
        cache: folder.clone().map(PathBuf::from),
        prompt: folder.map(PathBuf::from),
    });
    let benchmark = (prop_oneof![name(), Just("mmhal".to_owned())], name(), prop::option::of(1..99_usize));
    let benchmark = benchmark.prop_map(|(name, data, limit)| BenchmarkSample { name, data: data.into(), limit });
    let prompts = prop::option::of(name().prop_map(PathBuf::from));
    let answers = (prop::option::of(benchmark), judge, prompts, 1..99_usize);
    let rest = (any::<bool>(), prop::option::of(1..99_usize), 1..99_usize, prop::option::of(best), answers);
    let evaluation = (held_out, 1..99_usize, rest).prop_map(move |(held_out, every, rest)| {
        let (on_start, max_samples, per_device, mut best, (benchmark, judge, prompts, max_new_tokens)) = rest;
        let when = match save {
            Save::EachEpoch => EvaluateWhen::EachEpoch,
            Save::Steps(saved) if best.as_ref().is_some_and(|best| best.ends_with == EndsWith::Best) => {
                EvaluateWhen::Steps(saved)
            }
            Save::Never | Save::Steps(_) => EvaluateWhen::Steps(every),
        };
        if let (Some(best), Save::Never) = (&mut best, save) {
            best.ends_with = EndsWith::Last;
        }
        let benchmarks: Vec<BenchmarkSample> = benchmark.into_iter().collect();
        let judge = benchmarks.iter().any(|benchmark| benchmark.name == "mmhal").then_some(judge);
        // What has no meaning keeps its default.
        let nothing = held_out == HeldOut::Nothing;
        let prompts = prompts.or((nothing && benchmarks.is_empty()).then(|| "prompts.jsonl".into()));
        let answers = prompts.is_some() || !benchmarks.is_empty();
        let max_samples = max_samples.filter(|_| !nothing);
        let max_new_tokens = if answers { max_new_tokens } else { 256 };
        Evaluation {
            when,
            on_start,
            held_out,
            max_samples,
            per_device,
            best,
            benchmarks,
            judge,
            prompts,
            max_new_tokens,
        }
    });
    prop::option::of(evaluation)
}

//! `make gpu-check`: does CUDA compute what the CPU computes, and how fast is it?
//!
//! ```text
//! gpu_check [--parity FOLDER] [--inputs FOLDER] [--device cpu]
//! gpu_check --rank RECIPE        what the check of ranks starts, twice
//! ```
//!
//! `--parity` is the repository's `parity/` (the default where it runs in the root), `--inputs` what `benchmarks/make_inputs.py --size gpu`
//! wrote; `--device cpu` compares the CPU with itself, which tries this program out where no GPU is. Every line says what was checked,
//! the worst difference and the most that is allowed, or what was not checked and why. The exit status is 1 where something differs
//! too much, 0 otherwise, also on a machine without a GPU.
//!
//! In f32 CUDA is compared with the CPU. In bf16 both round differently, so both are compared with f32 on the CPU: CUDA may be twice
//! as far from it as the CPU is; three times in log-probs, whose worst is that of a few sums (2.2 times on an H200). The other bounds are
//! two to ten times what an H200 showed.

#[path = "../tests/common/cases.rs"]
mod cases;

use cases::{
    ALL_PARTS, Fixture, MODELS, POLICY, difference, features, gradient, gradients, prepare, prompt, relative, response,
    two_log_probs,
};
use mdpo::config::Run;
use mdpo::logprob::{Gradients, log_probs};
use mdpo::model::language::Keep;
use mdpo::model::load::Plan;
use mdpo::model::{DeviceBatch, Model, States};
use mdpo::text::pack::PackedBatch;
use mdpo::train::{Outcome, Ranks, Talk, bench, memory, train, train_on};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Dense bf16 of an H100 or H200 by its data sheet, operations per second.
const H200_PEAK: f64 = 989e12;

/// What was found so far.
struct Report {
    /// What is compared with the CPU.
    device: Device,
    failed: usize,
    checked: usize,
}

impl Report {
    fn within(&mut self, what: &str, worst: f64, limit: f64) {
        self.checked += 1;
        // A NaN is not within anything.
        let fine = worst <= limit;
        self.failed += usize::from(!fine);
        println!("{}  {what}: worst {worst:.2e}, allowed {limit:.2e}", if fine { "ok    " } else { "FAILED" });
    }

    fn skipped(&self, what: &str, why: &str) {
        println!("not checked  {what}: {why}");
    }
}

struct Options {
    parity: PathBuf,
    inputs: Option<PathBuf>,
    device: Device,
    /// This process is one of the ranks of another that checks them, and trains as this recipe says.
    rank_of: Option<PathBuf>,
}

const USAGE: &str = "usage: gpu_check [--parity FOLDER] [--inputs FOLDER] [--device cpu]";

fn options() -> Result<Options, String> {
    let mut options = Options { parity: PathBuf::from("parity"), inputs: None, device: Device::Cuda(0), rank_of: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{name}`: expected a value behind it"))?;
        match name.as_str() {
            "--parity" => options.parity = PathBuf::from(value),
            "--inputs" => options.inputs = Some(PathBuf::from(value)),
            "--device" if value == "cpu" => options.device = Device::Cpu,
            "--rank" => options.rank_of = Some(PathBuf::from(value)),
            _ => return Err(format!("`{name} {value}`: expected `--parity`, `--inputs` or `--device cpu`")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(recipe) = &options.rank_of {
        return be_a_rank(recipe);
    }
    match (torch_ext::load_cuda(), options.device) {
        (_, Device::Cpu) => println!("device    the CPU, compared with itself: this tells nothing about a GPU"),
        (torch_ext::CudaState::Usable { .. }, _) => about_the_machine(),
        (torch_ext::CudaState::Unusable { why }, _) => {
            println!("nothing was checked: no usable NVIDIA GPU ({why})");
            println!(
                "  it needs a driver and the CUDA libraries of PyTorch 2.11: make gpu-check LIBTORCH=…/site-packages/torch"
            );
            return ExitCode::SUCCESS;
        }
    }
    let mut report = Report { device: options.device, failed: 0, checked: 0 };
    if options.parity.join("model").is_dir() {
        let models = options.parity.join("model");
        forward(&mut report, &models);
        backward(&mut report, &models);
        shared_prompts(&mut report, &models);
        training(&mut report, &models);
        ranks(&mut report, &models);
    } else {
        let why = format!("no folder {} (name it with --parity)", options.parity.join("model").display());
        report.skipped("parity with the CPU, training, resuming, ranks", &why);
    }
    match options.device {
        Device::Cuda(_) => kernels(options.device),
        _ => report.skipped("rates of the largest kernels", "they are CUDA's"),
    }
    match &options.inputs {
        Some(inputs) => speed(&mut report, inputs),
        None => report.skipped("speed of training at LLaVA-1.5-7B's shape", "no `--inputs`"),
    }
    println!("not checked  TRL and the released mDPO beside mdpo, in one run on one machine:");
    println!("  python benchmarks/make_inputs.py bench-gpu --size gpu");
    println!("  python benchmarks/compare.py bench-gpu --mdpo target/release/mdpo --dtypes bf16 --rounds 3 --steps 8");
    let Report { failed, checked, .. } = report;
    println!("{} of {checked} checks passed", checked - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn about_the_machine() {
    let query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id=0"];
    let found = Command::new("nvidia-smi").args(query).output().ok().and_then(|out| String::from_utf8(out.stdout).ok());
    println!("device    {}", found.as_deref().map_or("(nvidia-smi is not there to name it)", str::trim));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let library =
        maps.lines().find_map(|line| line.split_whitespace().last().filter(|p| p.ends_with("libtorch_cuda.so")));
    println!("libtorch  {}", library.unwrap_or("(unknown place)"));
    println!("CUDA      runtime {}, cuDNN {}", tch::utils::version_cudart(), tch::utils::version_cudnn());
}

/// The largest of some numbers; NaN where one is.
fn worst(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |worst, value| if value.is_nan() || value > worst { value } else { worst })
}

/// Reports how far CUDA is from the CPU in f32, and in bf16 how far from f32 beside the CPU's own distance.
fn compare(
    report: &mut Report,
    what: &str,
    limit: f64,
    found: impl Fn(Kind, Device) -> Vec<Tensor>,
    by: fn(&Tensor, &Tensor) -> f64,
    times: f64,
) {
    let (exact, gpu) = (found(Kind::Float, Device::Cpu), report.device);
    let distance = |kind, device| worst(found(kind, device).iter().zip(&exact).map(|(found, exact)| by(found, exact)));
    report.within(&format!("{what}, f32"), distance(Kind::Float, gpu), limit);
    let allowed = times * distance(Kind::BFloat16, Device::Cpu) + limit;
    report.within(&format!("{what}, bf16 (from f32; {times} times the CPU's)"), distance(Kind::BFloat16, gpu), allowed);
}

/// Tower, hidden states of all tokens and of those that predict, and log-probs of every case.
fn forward(report: &mut Report, models: &Path) {
    for name in MODELS {
        let fixture = Fixture::open(models, name);
        let states = |kind, device, of: &dyn Fn(&Model, &Value) -> Vec<Tensor>| {
            let model = fixture.load(kind, device, Plan::Frozen { adapter: None });
            fixture.cases().flat_map(|case| of(&model, case)).collect::<Vec<_>>()
        };
        let seen = |model: &Model, case: &Value| {
            let (_, pixels) = prepare(model, &fixture, case);
            tch::no_grad(|| features(model, &pixels)).into_iter().collect()
        };
        if fixture.cases().any(|case| fixture.expected(case, "vision_features").is_some()) {
            compare(
                report,
                &format!("{name}: features of images"),
                5e-6,
                |kind, device| states(kind, device, &seen),
                relative,
                2.0,
            );
        }
        let hidden = |model: &Model, case: &Value| {
            let (batch, pixels) = prepare(model, &fixture, case);
            let features = tch::no_grad(|| features(model, &pixels));
            let all = DeviceBatch::with_states(batch.packed.clone(), model.device, States::All);
            let run = |batch: &DeviceBatch| {
                model.forward(batch, features.as_ref(), POLICY, Keep::Nothing).hidden().shallow_clone()
            };
            vec![run(&all), run(&batch)]
        };
        compare(
            report,
            &format!("{name}: hidden states"),
            2e-5,
            |kind, device| states(kind, device, &hidden),
            relative,
            2.0,
        );
        let sums =
            |model: &Model, case: &Value| vec![Tensor::from_slice(&two_log_probs(model, &fixture, case, POLICY))];
        compare(
            report,
            &format!("{name}: log-probs of responses, nats"),
            1e-4,
            |kind, device| states(kind, device, &sums),
            difference,
            3.0,
        );
    }
}

/// Gradients of every weight, all parts trained: in f32 each tensor by its largest entry, and all of a case together by their length.
fn backward(report: &mut Report, models: &Path) {
    for name in MODELS {
        let fixture = Fixture::open(models, name);
        let of = |kind, device, keep| {
            let model = fixture.load(kind, device, Plan::Full(&ALL_PARTS));
            let one = |case: &Value| {
                gradients(&model, &fixture, case, keep);
                let there =
                    |found: &Tensor, leaf: &Tensor| if found.defined() { found.copy() } else { leaf.zeros_like() };
                let all = model.trainables.iter();
                all.map(|t| there(&gradient(&model, &t.name), &t.leaf.detach())).collect::<Vec<_>>()
            };
            fixture.cases().map(one).collect::<Vec<_>>()
        };
        let joined = |cases: Vec<Vec<Tensor>>| -> Vec<Tensor> {
            let flat = |case: &Vec<Tensor>| Tensor::cat(&case.iter().map(|t| t.flatten(0, -1)).collect::<Vec<_>>(), 0);
            cases.iter().map(flat).collect()
        };
        let (exact, found) = (of(Kind::Float, Device::Cpu, Keep::Graph), of(Kind::Float, report.device, Keep::Graph));
        // Some gradients are nothing but rounding (softmax cancels those of key biases): they count by a thousandth of the largest.
        let gap = |(found, exact): (&Vec<Tensor>, &Vec<Tensor>)| {
            let largest = worst(exact.iter().map(|exact| exact.abs().max().double_value(&[])));
            let share = |(found, exact): (&Tensor, &Tensor)| {
                difference(found, exact) / exact.abs().max().double_value(&[]).max(1e-3 * largest)
            };
            worst(found.iter().zip(exact).map(share))
        };
        let gaps = found.iter().zip(&exact).map(gap);
        report.within(&format!("{name}: gradients of each tensor, f32"), worst(gaps), 2e-4);
        let together = |kind, device| joined(of(kind, device, Keep::Graph));
        compare(report, &format!("{name}: gradients by their length"), 1e-5, together, by_length, 2.0);
        for (kind, limit) in [(Kind::Float, 2e-6), (Kind::BFloat16, 2e-2)] {
            let both = [Keep::Graph, Keep::LayerInputs].map(|keep| joined(of(kind, report.device, keep)));
            let gap = worst(both[0].iter().zip(&both[1]).map(|(graph, again)| by_length(again, graph)));
            let what = format!("{name}: gradients by their length, layers computed again = graph kept, {kind:?}");
            report.within(&what, gap, limit);
        }
    }
}

/// Length of the difference as a share of the expected length.
fn by_length(found: &Tensor, expected: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
    (wide(found) - wide(expected)).norm().double_value(&[]) / wide(expected).norm().double_value(&[])
}

/// A prompt shared by two responses against each response behind its own prompt.
fn shared_prompts(report: &mut Report, models: &Path) {
    let fixture = Fixture::open(models, "llava-tiny");
    for (kind, limit) in [(Kind::Float, 2e-5), (Kind::BFloat16, 0.5)] {
        let model = fixture.load(kind, report.device, Plan::Frozen { adapter: None });
        let alone = |case: &Value, key: &str| {
            let (_, pixels) = prepare(&model, &fixture, case);
            let features = tch::no_grad(|| features(&model, &pixels));
            let mut alone = PackedBatch::default();
            alone.push(&prompt(&model, case), &[&response(&case[key])], |image| image);
            let alone = DeviceBatch::new(alone, model.device);
            let run = model.forward(&alone, features.as_ref(), POLICY, Keep::Nothing);
            log_probs(run.hidden(), &model.language.head(POLICY), &alone.packed, Gradients::Unwanted)
                .sums()
                .double_value(&[0])
        };
        let gaps = fixture.cases().map(|case| {
            let shared = two_log_probs(&model, &fixture, case, POLICY);
            worst(
                ["chosen_ids", "rejected_ids"]
                    .iter()
                    .zip(shared)
                    .map(|(key, shared)| (alone(case, key) - shared).abs()),
            )
        });
        report.within(&format!("shared prompt = separate sequences, nats, {kind:?}"), worst(gaps), limit);
    }
}

/// Short runs on `llava-tiny`.
struct Runs {
    models: PathBuf,
    folder: tempfile::TempDir,
    device: &'static str,
}

impl Runs {
    fn new(models: &Path, device: Device) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let images = ["wide.png", "tall.png", "exact.png", "odd.png", "rgba.png"];
        let row = |i: usize| {
            let answer = |i: usize| ["sun", "a red roof", "seven boats on the lake"][i % 3].repeat(1 + i % 3);
            json!({
                "images": [images[i % images.len()]],
                "prompt": [{"role": "user", "content": format!("Picture {i}: what do you see?")}],
                "chosen": [{"role": "assistant", "content": answer(i)}],
                "rejected": [{"role": "assistant", "content": answer(i + 1)}],
            })
        };
        let rows: String = (0..8).map(|i| format!("{}\n", row(i))).collect();
        std::fs::write(folder.path().join("rows.jsonl"), rows).expect("rows");
        let models = models.canonicalize().expect("the folder of the models");
        Runs { models, folder, device: if device == Device::Cpu { "cpu" } else { "cuda" } }
    }

    fn recipe(&self, out: &str) -> String {
        let lines = [
            ("model_name_or_path", json!(self.models.join("llava-tiny"))),
            ("dataset_name", json!(self.folder.path().join("rows.jsonl"))),
            ("image_folder", json!(self.models.join("images"))),
            ("output_dir", json!(self.folder.path().join(out))),
            ("device", json!(self.device)),
            ("learning_rate", json!(2e-3)),
            ("lora_r", json!(4)),
            ("per_device_train_batch_size", json!(2)),
            ("max_steps", json!(6)),
            ("logging_steps", json!(1)),
        ];
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }

    fn train(&self, out: &str, keys: &[&str]) -> Result<Outcome, String> {
        let recipe = self.recipe(out);
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        let run = Run::from_yaml(&recipe, "recipe", &keys).and_then(Run::resolve);
        run.and_then(|run| train(&run, Talk::Silent)).map_err(|error| error.to_string().replace('\n', " "))
    }

    /// The margins of every step and the first loss.
    fn curve(&self, report: &mut Report, out: &str, keys: &[&str]) -> Option<(Vec<f64>, f64)> {
        match self.train(out, keys) {
            Ok(outcome) => {
                let figure = |entry: &Value, name: &str| entry[name].as_f64().unwrap_or(f64::NAN);
                let margins = outcome.log_history.iter().map(|entry| figure(entry, "rewards/margins")).collect();
                Some((margins, figure(&outcome.log_history[0], "loss")))
            }
            Err(error) => {
                println!("        {}: {error}", keys.join(" "));
                report.within(&format!("training with {}", keys.join(" ")), f64::NAN, 0.0);
                None
            }
        }
    }
}

/// First losses, CUDA = CPU, layers computed again = graph kept, resumed = straight.
fn training(report: &mut Report, models: &Path) {
    let runs = Runs::new(models, report.device);
    let ln2 = std::f64::consts::LN_2;
    for dtype in ["float32", "bfloat16", "float16"] {
        for (objective, expected) in [("mdpo", 3.0 * ln2), ("dpo", ln2)] {
            let keys = [format!("loss_type={objective}"), format!("dtype={dtype}")];
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            if let Some((_, first)) = runs.curve(report, &format!("first-{objective}-{dtype}"), &keys) {
                report.within(&format!("first loss of {objective}, {dtype}"), (first - expected).abs(), 1e-6);
            }
        }
    }
    let gap = |a: &(Vec<f64>, f64), b: &(Vec<f64>, f64)| worst(a.0.iter().zip(&b.0).map(|(a, b)| (a - b).abs()));
    let same = |report: &mut Report, what: &str, limit: f64, one: &[&str], other: &[&str]| {
        let name = what.replace(' ', "-");
        let one = runs.curve(report, &format!("{name}-1"), one);
        let other = runs.curve(report, &format!("{name}-2"), other);
        if let (Some(one), Some(other)) = (one, other) {
            report.within(&format!("margins of 6 steps, {what}"), gap(&one, &other), limit);
        }
    };
    same(report, "CUDA = CPU in f32", 1e-5, &[], &["device=cpu"]);
    same(report, "bf16 beside f32", 0.2, &["dtype=bfloat16"], &["dtype=float32"]);
    let layers = ["gradient_checkpointing=layers", "gradient_checkpointing=none"];
    same(report, "layers computed again = graph kept in f32", 1e-5, &layers[..1], &layers[1..]);
    let dropout = "lora_dropout=0.3";
    same(report, "the same with dropout", 1e-5, &[dropout, layers[0]], &[dropout, layers[1]]);
    let checkpoint = runs.folder.path().join("saved/checkpoint-3");
    if runs.curve(report, "saved", &["save_steps=3", dropout]).is_some() {
        let resume = format!("resume_from_checkpoint={}", checkpoint.display());
        // Atomic additions in the kernels' backward passes come in any order, so this is not to the bit as it is on a CPU.
        same(
            report,
            "a resumed run = a straight one",
            1e-5,
            &["save_steps=3", dropout],
            &["save_steps=3", dropout, &resume],
        );
    }
}

/// Two ranks train as one process does: over NCCL, or with `--device cpu` over Gloo.
fn ranks(report: &mut Report, models: &Path) {
    let what = if report.device == Device::Cpu {
        "two ranks over Gloo = one process"
    } else {
        "two ranks over NCCL = one process"
    };
    let gpus = tch::Cuda::device_count();
    if report.device != Device::Cpu && gpus < 2 {
        return report.skipped(what, &format!("it takes two GPUs, {gpus} is visible"));
    }
    let runs = Runs::new(models, report.device);
    let Some((alone, _)) = runs.curve(report, "one-rank", &["gradient_accumulation_steps=2"]) else { return };
    match two_ranks(&runs, "two-ranks") {
        Err(error) => {
            println!("        {error}");
            report.within(what, f64::NAN, 0.0);
        }
        Ok(together) => {
            let gaps = together.iter().zip(&alone).map(|(a, b)| (a - b).abs());
            let missing = if together.len() == alone.len() { 0.0 } else { f64::NAN };
            report.within(&format!("margins of 6 steps, {what}"), worst(gaps.chain([missing])), 1e-3);
        }
    }
}

/// The margins of every step, as the first of two ranks has written them.
fn two_ranks(runs: &Runs, out: &str) -> Result<Vec<f64>, String> {
    let said = |error: std::io::Error| error.to_string();
    let recipe = runs.folder.path().join("ranks.yaml");
    std::fs::write(&recipe, runs.recipe(out)).map_err(said)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).map_err(said)?.port();
    let program = std::env::current_exe().map_err(said)?;
    let start = |rank: usize| {
        let mut rank_command = Command::new(&program);
        rank_command.arg("--rank").arg(&recipe).env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        rank_command.env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).spawn()
    };
    let started = (0..2).map(start).collect::<Result<Vec<_>, _>>().map_err(said)?;
    for (rank, mut child) in started.into_iter().enumerate() {
        let status = child.wait().map_err(said)?;
        if !status.success() {
            return Err(format!("rank {rank} ended with {status}"));
        }
    }
    let text = std::fs::read_to_string(runs.folder.path().join(out).join("trainer_state.json")).map_err(said)?;
    let state: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let entries = state["log_history"].as_array().ok_or("no log")?;
    Ok(entries.iter().map(|entry| entry["rewards/margins"].as_f64().unwrap_or(f64::NAN)).collect())
}

/// Trains as one of the ranks that [`two_ranks`] has started.
fn be_a_rank(recipe: &Path) -> ExitCode {
    let trained = Ranks::from_environment().and_then(|ranks| {
        let run = ranks.agree(mdpo::config::load(recipe, &[]))?;
        train_on(&ranks, &run, Talk::Silent)
    });
    match trained {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!("        {error}");
            ExitCode::FAILURE
        }
    }
}

/// Rates of the largest kernels by themselves: what a step can reach at best.
fn kernels(gpu: Device) {
    let options = (Kind::BFloat16, gpu);
    let time = |work: &dyn Fn()| {
        (0..3).for_each(|_| work());
        tch::Cuda::synchronize(0);
        let began = Instant::now();
        (0..10).for_each(|_| work());
        tch::Cuda::synchronize(0);
        began.elapsed().as_secs_f64() / 10.0
    };
    let told = |what: &str, seconds: f64, operations: f64| {
        let share = 100.0 * operations / seconds / H200_PEAK;
        println!(
            "measured  {what}: {:.3} ms, {:.0} TFLOP/s ({share:.0} % of an H200's 989)",
            1e3 * seconds,
            operations / seconds / 1e12
        );
    };
    let (tokens, width, inner) = (6400i64, 4096i64, 11008i64);
    let (x, w) = (Tensor::randn([tokens, width], options), Tensor::randn([inner, width], options));
    let seconds = time(&|| drop(tch::no_grad(|| x.linear::<&Tensor>(&w, None))));
    told("a product of Llama 7B's MLP over 6400 tokens, bf16", seconds, 2.0 * (tokens * width * inner) as f64);

    // Eight prompts of 620 tokens with two responses of 100, the first in one run with its prompt.
    let (pairs, prompt, answer, heads, head_dim) = (8i64, 620i64, 100i64, 32i64, 128i64);
    let (queries, keys) = (vec![prompt + answer, answer], vec![prompt + answer, prompt + answer]);
    let starts = |lengths: &[i64]| {
        let all = lengths.iter().cycle().take(2 * pairs as usize);
        let ends = all.scan(0, |sum, length| {
            *sum += *length as i32;
            Some(*sum)
        });
        Tensor::from_slice(&std::iter::once(0).chain(ends).collect::<Vec<i32>>()).to_device(gpu)
    };
    let (q_starts, k_starts) = (starts(&queries), starts(&keys));
    let leaf = |rows: i64| Tensor::randn([rows, heads, head_dim], options).set_requires_grad(true);
    let (q, k, v) = (
        leaf(pairs * queries.iter().sum::<i64>()),
        leaf(pairs * keys.iter().sum::<i64>()),
        leaf(pairs * keys.iter().sum::<i64>()),
    );
    let most = (prompt + answer) as usize;
    let attend = || torch_ext::varlen_attention(&q, &k, &v, &q_starts, &k_starts, most, most);
    if let Err(error) = attend() {
        println!("FAILED  variable-length attention: {error}");
        return;
    }
    let pairs_seen = |q: i64, k: i64| (q * (k - q) + q * (q + 1) / 2) as f64;
    let seen: f64 = queries.iter().zip(&keys).map(|(&q, &k)| pairs_seen(q, k)).sum::<f64>() * pairs as f64;
    let operations = 4.0 * (heads * head_dim) as f64 * seen;
    told("attention of 8 pairs in Llama 7B's shape, forward, bf16", time(&|| drop(tch::no_grad(attend))), operations);
    let both = || {
        if let Ok(out) = attend() {
            drop(Tensor::run_backward(&[out.sum(Kind::Float)], &[&q, &k, &v], false, false));
        }
    };
    told("the same forward and backward", time(&both), 3.5 * operations);
}

/// mdpo alone on the benchmark's inputs: pairs a second, share of the peak, memory.
fn speed(report: &mut Report, inputs: &Path) {
    for objective in ["dpo", "mdpo"] {
        for checkpointing in ["none", "layers"] {
            let what = format!("training with {objective} in bf16, gradient_checkpointing {checkpointing}");
            let keys = [
                format!("gradient_checkpointing={checkpointing}"),
                "dtype=bfloat16".to_owned(),
                "device=cuda".to_owned(),
            ];
            // Counted anew for each run; a device that was not used yet has nothing to count.
            let _ = torch_ext::reset_cuda_peak(0);
            let run = mdpo::config::load(&inputs.join(format!("{objective}.yaml")), &keys);
            match run.and_then(|run| bench(&run, 2, 5)) {
                Err(error) => report.skipped(&what, &error.to_string().replace('\n', " ")),
                Ok(found) => {
                    let [median, least, most] = found.step_time;
                    println!("measured  {what}:");
                    println!(
                        "  {median:.3} s a step ({least:.3} to {most:.3}), {:.2} pairs/s, {:.0} tokens/s",
                        found.pairs / median,
                        found.tokens / median
                    );
                    let rate = found.flops_per_second;
                    println!(
                        "  {:.0} TFLOP/s of model FLOPs: {:.1} % of an H200's 989, {:.1} % of what a large product reaches here",
                        rate / 1e12,
                        100.0 * rate / H200_PEAK,
                        100.0 * rate / found.matmul_peak
                    );
                    let peak = found.peak_gpu.map_or("an unknown amount".to_owned(), memory::bytes);
                    println!("  at most {peak} of GPU memory in tensors");
                    for (stage, seconds) in &found.stages {
                        println!("  {stage:<10} {seconds:8.3} s");
                    }
                }
            }
        }
    }
}

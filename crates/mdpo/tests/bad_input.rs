//! The program given what it cannot use: one message that says where, what and how to mend it, an exit code, never a panic.
//!
//! `check` must say what `train` says, so both run on one case of every kind.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tch::Tensor;

/// A folder with rows, a recipe and a checkpoint that may be damaged.
struct Bench {
    dir: tempfile::TempDir,
    model: PathBuf,
}

fn parity(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity").join(path).canonicalize().expect("a fixture")
}

fn row(index: usize) -> Value {
    json!({
        "images": ["wide.png"],
        "prompt": [{"role": "user", "content": format!("What is in picture {index}?")}],
        "chosen": [{"role": "assistant", "content": "A red kite over the sea."}],
        "rejected": [{"role": "assistant", "content": "Nothing."}],
    })
}

impl Bench {
    fn new(model: &str) -> Self {
        let bench = Bench { dir: tempfile::tempdir().expect("a folder"), model: parity("model").join(model) };
        fs::copy(parity("model/images/wide.png"), bench.path("wide.png")).expect("an image");
        bench.rows((0..4).map(row));
        bench
    }

    /// With rows of which the third is `bad`.
    fn with_row(bad: Value) -> Self {
        let bench = Bench::new("llava-tiny");
        bench.rows([row(0), row(1), bad, row(3)]);
        bench
    }

    /// With a copy of a checkpoint that `damage` has changed.
    fn with_model(model: &str, damage: impl FnOnce(&Path)) -> Self {
        let mut bench = Bench::new(model);
        let copy = bench.path("checkpoint");
        fs::create_dir(&copy).expect("a folder");
        for entry in fs::read_dir(&bench.model).expect("a checkpoint").flatten().filter(|entry| entry.path().is_file())
        {
            fs::copy(entry.path(), copy.join(entry.file_name())).expect("copied");
        }
        damage(&copy);
        bench.model = copy;
        bench
    }

    fn rows(&self, rows: impl IntoIterator<Item = Value>) {
        let text: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.path("rows.jsonl"), text).expect("rows");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the recipe and gives the command `mdpo VERB RECIPE KEYS`.
    fn command(&self, verb: &str, keys: &[&str]) -> Command {
        let recipe = self.path("recipe.yaml");
        let (model, data, out) = (self.model.display(), self.path("rows.jsonl"), self.path("out"));
        let text = format!(
            "model_name_or_path: {model}\ndataset_name: {}\noutput_dir: {}\ndevice: cpu\nmax_steps: 2\n\
             per_device_train_batch_size: 2\nlora_r: 4\n",
            data.display(),
            out.display()
        );
        fs::write(&recipe, text).expect("a recipe");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
        command.arg(verb).arg(recipe).args(keys).env("OMP_NUM_THREADS", "1").env("RUST_BACKTRACE", "1");
        command
    }

    fn run(&self, verb: &str, keys: &[&str]) -> Output {
        self.command(verb, keys).output().expect("it ran")
    }

    /// `train` refuses with a message that says all of `parts`.
    #[track_caller]
    fn refuses(&self, keys: &[&str], parts: &[&str]) {
        refusal(&self.run("train", keys), parts);
    }

    /// `train` and `check` refuse with the same message, which says all of `parts`.
    #[track_caller]
    fn both_refuse(&self, keys: &[&str], parts: &[&str]) {
        let [check, train] = ["check", "train"].map(|verb| refusal(&self.run(verb, keys), parts));
        assert_eq!(check, train, "`check` and `train` say the same");
    }
}

/// The message of a run that failed, which must look like one.
#[track_caller]
fn refusal(output: &Output, parts: &[&str]) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("error: ") || text.contains("\nerror: "), "{text}");
    for sign in ["panicked", "backtrace", "internal", "RUST_", "c10::", ".rs:"] {
        assert!(!text.contains(sign), "`{sign}` in: {text}");
    }
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    text
}

/// Reads the checkpoint's tensors, lets `change` at them and writes them back.
fn change_tensors(folder: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).expect("tensors");
    change(&mut tensors);
    Tensor::write_safetensors(&tensors, &path).expect("written");
}

fn change_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).expect("a file")).expect("JSON");
    change(&mut config);
    fs::write(path, config.to_string()).expect("written");
}

fn cut(path: &Path) {
    let bytes = fs::read(path).expect("a file");
    fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
}

const QUERY: &str = "language_model.model.layers.1.self_attn.q_proj.weight";

#[test]
fn missing_files() {
    let bench = Bench::new("llava-tiny");
    bench.refuses(&["dataset_name=gone.jsonl"], &["`dataset_name`", "`gone.jsonl` does not exist", "hint: "]);
    bench.refuses(&["model_name_or_path=./gone"], &["`model_name_or_path`", "`./gone`", "hint: check the path"]);
    bench.refuses(
        &["model_name_or_path=nobody/nothing"],
        &["`nobody/nothing`", "hint: run `hf download nobody/nothing`"],
    );
    bench.refuses(&["resume_from_checkpoint=gone"], &["`resume_from_checkpoint`", "`gone` is not a folder"]);
    bench.refuses(&["lora_r=null", "adapter_name_or_path=./gone"], &["`adapter_name_or_path`", "`./gone`"]);
    let both = ["dataset_name=gone.jsonl", "model_name_or_path=./gone"];
    bench.both_refuse(&both, &["2 problems", "`dataset_name`", "`model_name_or_path`"]);
    let recipe = Command::new(env!("CARGO_BIN_EXE_mdpo")).args(["train", "gone.yaml"]).output().expect("it ran");
    refusal(&recipe, &["gone.yaml", "cannot read", "hint: "]);
    for (name, hint) in [("tokenizer.json", "hint: "), ("config.json", "hint: "), ("processor_config.json", "hint: ")] {
        let bench = Bench::with_model("llava-tiny", |folder| fs::remove_file(folder.join(name)).expect("removed"));
        bench.refuses(&[], &["checkpoint", name.trim_end_matches("processor_config.json"), hint]);
    }
    let bench =
        Bench::with_model("llava-tiny", |folder| fs::remove_file(folder.join("model.safetensors")).expect("removed"));
    bench.refuses(&[], &["checkpoint", "model.safetensors", "hint: "]);
}

#[test]
fn broken_recipes() {
    let bench = Bench::new("llava-tiny");
    bench.both_refuse(
        &["learning_rat=1e-5"],
        &["command line", "`learning_rat`", "hint: did you mean `learning_rate`?"],
    );
    bench.refuses(&["learning_rate=fast"], &["`learning_rate`: expected a number above 0, found `fast`"]);
    bench.refuses(&["bf16=true", "fp16=true"], &["`bf16` and `fp16`", "hint: leave one"]);
    bench.refuses(&["use_peft=false", "lora_r=null"], &["`use_peft: false` without `trained_parts`", "hint: add"]);
    bench.refuses(
        &["deepspeed=zero3.json"],
        &["`deepspeed: zero3.json` is not supported", "one device", "hint: leave it out"],
    );
    bench.refuses(&["beta=-1", "lora_r=0"], &["2 problems", "command line: `beta`", "command line: `lora_r`"]);
    let recipe = bench.path("broken.yaml");
    fs::write(&recipe, "model_name_or_path: [a\n").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_mdpo")).arg("train").arg(&recipe).output().expect("it ran");
    refusal(&output, &["broken.yaml", "not a recipe", "hint: a recipe is YAML"]);
}

#[test]
fn rows_that_cannot_be_used() {
    let changed = |key: &str, value: Value| {
        let mut row = row(2);
        row[key] = value;
        row
    };
    let message = |text: &str| json!([{"role": "assistant", "content": text}]);
    let cases = [
        (changed("chosen", Value::Null), "no `chosen`"),
        (changed("chosen", message("Nothing.")), "`chosen` and `rejected` are"),
        (changed("rejected", message("")), "`rejected` is empty"),
        (changed("images", json!(["wide.png", "wide.png", "gone.png"])), "gone.png"),
        (
            json!({"images": ["wide.png"], "prompt": "<image><image> What?", "chosen": "a", "rejected": "b"}),
            "2 `<image>` marks",
        ),
        (json!({"images": ["wide.png"], "prompt": "", "chosen": "a", "rejected": "b"}), "`prompt`"),
    ];
    for (row, said) in cases {
        let bench = Bench::with_row(row);
        bench.refuses(&[], &["data set: 1 of 4 rows cannot be used", "rows.jsonl line 3", said, "max_skipped_rows: 1"]);
    }
    let bench = Bench::new("llava-tiny");
    fs::write(bench.path("rows.jsonl"), format!("{}\n{{\"prompt\": \n", row(0))).expect("rows");
    bench.refuses(&[], &["rows.jsonl line 2", "JSON"]);
    fs::write(bench.path("rows.jsonl"), "").expect("rows");
    bench.both_refuse(&[], &["rows.jsonl", "no rows"]);
    bench.rows([changed("chosen", Value::Null), changed("rejected", Value::Null)]);
    bench.refuses(&[], &["2 of 2 rows cannot be used", "line 1", "line 2"]);
    let without = (0..4).map(|i| {
        let mut row = row(i);
        row["images"] = Value::Null;
        row
    });
    bench.rows(without);
    bench.both_refuse(&[], &["`loss_type`", "no row has one", "hint: use `loss_type: dpo`"]);
}

#[test]
fn rows_that_are_too_long() {
    let mut long = row(2);
    long["chosen"] = json!("a very long answer ".repeat(40));
    let bench = Bench::with_row(long);
    let hint = "hint: raise `max_length`, or set `truncation_mode: keep_start`";
    bench.refuses(&["max_length=300"], &["rows.jsonl line 3", "300", hint]);
    bench.both_refuse(&["max_length=30", "max_skipped_rows=3"], &["4 of 4 rows", "line 1", "hint: raise `max_length`"]);
    bench.both_refuse(&["max_length=100000"], &["`max_length`", "512", "hint: set at most 512"]);
    assert!(bench.run("check", &["max_length=300", "truncation_mode=keep_start"]).status.success());
}

#[test]
fn a_bad_row_may_be_left_out() {
    let mut bad = row(2);
    bad["chosen"] = Value::Null;
    let bench = Bench::with_row(bad);
    for verb in ["check", "train"] {
        let output = bench.run(verb, &["max_skipped_rows=1"]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}");
        assert!(text.contains("rows.jsonl line 3: no `chosen`") && text.contains("left out"), "{text}");
        assert!(text.contains("3 usable of 4") || text.contains("3 of 4 rows"), "{text}");
    }
}

#[test]
fn broken_images() {
    let mut bad = row(2);
    for name in ["cut.png", "cut.jpg", "text.png", "empty.png"] {
        bad["images"] = json!([name]);
        let bench = Bench::with_row(bad.clone());
        let path = bench.path(name);
        match name {
            "cut.png" => drop(fs::copy(bench.path("wide.png"), &path).expect("copied")),
            "cut.jpg" => {
                let noise =
                    |x: u32, y: u32| image::Rgb([(x * 37 % 256) as u8, (y * 91 % 256) as u8, (x * y % 256) as u8]);
                image::RgbImage::from_fn(64, 48, noise).save(&path).expect("written");
            }
            "text.png" => fs::write(&path, "this is no picture").expect("written"),
            _ => fs::write(&path, "").expect("written"),
        }
        if name.starts_with("cut") {
            cut(&path);
        }
        let listed = ["rows.jsonl line 3", name, "image", "max_skipped_rows: 1"];
        if name.starts_with("cut") {
            // The header is whole: without rows that may be left out, `train` meets the picture at its step.
            refusal(&bench.run("check", &[]), &listed);
            bench.refuses(
                &[],
                &["rows.jsonl line 3", name, "cannot decode the image", "hint: replace the image; `mdpo check`"],
            );
            let elsewhere = format!("output_dir={}", bench.path("elsewhere").display());
            assert!(bench.run("train", &["max_skipped_rows=1", &elsewhere]).status.success());
        } else {
            bench.both_refuse(&[], &listed);
        }
    }
}

#[test]
fn an_image_for_a_model_without_eyes() {
    let bench = Bench::new("llama-tiny");
    bench.both_refuse(&["loss_type=dpo"], &["line 1", "the model takes none", "hint: choose a vision checkpoint"]);
}

#[test]
fn damaged_weights() {
    let bench = Bench::with_model("llava-tiny", |folder| cut(&folder.join("model.safetensors")));
    bench.refuses(&[], &["model.safetensors", "hint: "]);
    let bench = Bench::with_model("llava-tiny", |folder| {
        fs::write(folder.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n").expect("written");
    });
    bench.both_refuse(&[], &["model.safetensors", "git-lfs", "hint: "]);
    let bench = Bench::with_model("llava-tiny", |folder| {
        change_tensors(folder, |all| {
            all.iter_mut().filter(|(name, _)| name == QUERY).for_each(|(_, t)| *t = t.narrow(0, 0, 30))
        });
    });
    bench.refuses(&[], &["model.safetensors", "layers.1.self_attn.q_proj.weight", "[32, 32]", "[30, 32]"]);
    let bench =
        Bench::with_model("llava-tiny", |folder| change_tensors(folder, |all| all.retain(|(name, _)| name != QUERY)));
    bench.refuses(&[], &["layers.1.self_attn.q_proj.weight", "hint: "]);
    let bench = Bench::with_model("llava-tiny", |folder| {
        change_tensors(folder, |all| {
            all.push(("language_model.model.layers.7.extra.weight".to_owned(), Tensor::from(1.0f32)))
        });
    });
    bench.both_refuse(&[], &["layers.7.extra.weight"]);
    let bench = Bench::with_model("llava-tiny", |folder| {
        change_tensors(folder, |all| {
            for (_, tensor) in all.iter_mut().filter(|(name, _)| name == QUERY) {
                let _ = tensor.get(3).fill_(f64::NAN);
            }
        });
    });
    bench.both_refuse(&[], &["layers.1.self_attn.q_proj.weight", "NaN"]);
}

#[test]
fn configurations_that_are_not_supported() {
    type Case = (&'static str, fn(&mut Value), &'static [&'static str]);
    let cases: [Case; 5] = [
        ("llava-tiny", |config| config["model_type"] = json!("qwen2_vl"), &["`model_type`", "`qwen2_vl`", "llava"]),
        (
            "llava-tiny",
            |config| config["text_config"]["model_type"] = json!("gpt2"),
            &["model_type", "`gpt2`", "llama"],
        ),
        (
            "llava-tiny",
            |config| config["text_config"]["rope_parameters"] = json!({"rope_type": "longrope", "rope_theta": 1e4}),
            &["`text_config.rope_parameters`", "`longrope`", "linear"],
        ),
        (
            "llava-tiny",
            |config| config["text_config"]["num_attention_heads"] = json!("four"),
            &["num_attention_heads", "four"],
        ),
        ("llava-tiny", |config| config["quantization_config"] = json!({"bits": 4}), &["quantization_config"]),
    ];
    for (model, change, parts) in cases {
        let bench = Bench::with_model(model, |folder| change_config(folder, change));
        bench.refuses(&[], &[&["checkpoint/config.json"], parts].concat());
    }
    let bench = Bench::with_model("llava-tiny", |folder| cut(&folder.join("config.json")));
    bench.both_refuse(&[], &["config.json", "JSON"]);
    let bench = Bench::with_model("llava-tiny", |folder| cut(&folder.join("tokenizer.json")));
    bench.refuses(&[], &["tokenizer.json"]);
}

#[test]
fn adapters_that_do_not_fit() {
    let bench = Bench::new("llava-tiny");
    bench
        .both_refuse(&["lora_target_modules=[q_proj, query]"], &["lora_target_modules", "`query`", "hint: ", "q_proj"]);
    let other = format!("adapter_name_or_path={}", parity("model/llama-tiny/adapter").display());
    bench.refuses(&["lora_r=null", &other], &["adapter", "hint: "]);
}

#[test]
fn output_folders_that_cannot_be_used() {
    let bench = Bench::new("llava-tiny");
    fs::write(bench.path("file"), "mine").expect("written");
    let file = format!("output_dir={}", bench.path("file").display());
    bench.refuses(&[&file], &["`output_dir`", "is a file", "hint: choose another folder"]);
    bench.both_refuse(&[&format!("{file}/below")], &["file/below", "Not a directory", "hint: "]);
    assert_eq!(fs::read_to_string(bench.path("file")).expect("it is there"), "mine");
    fs::create_dir_all(bench.path("out/checkpoint-5")).expect("a folder");
    bench
        .both_refuse(&[], &["out: `output_dir` already holds checkpoints", "hint: set `resume_from_checkpoint: true`"]);
    let damaged = refusal(&bench.run("train", &["resume_from_checkpoint=true"]), &["checkpoint-5", "damaged"]);
    assert_eq!(damaged.lines().count(), 2, "{damaged}");
}

/// A limit on the size of files stands in for a full disk: both make a write fail half way.
#[cfg(unix)]
#[test]
fn a_write_that_fails_leaves_no_half_checkpoint() {
    let bench = Bench::new("llava-tiny");
    let plain = bench.command("train", &["save_steps=1", "lora_r=16"]);
    let mut limited = Command::new("sh");
    limited
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 100; exec \"$@\"")
        .arg("sh")
        .arg(plain.get_program())
        .args(plain.get_args());
    let output = limited.env("OMP_NUM_THREADS", "1").output().expect("it ran");
    refusal(&output, &["adapter_model.safetensors", "cannot write", "File too large", "hint: "]);
    let left: Vec<_> =
        fs::read_dir(bench.path("out")).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_said_and_stays_a_device() {
    use std::os::unix::fs::FileTypeExt;
    let bench = Bench::new("llava-tiny");
    refusal(
        &bench.run("reference", &["--output", "/dev/full"]),
        &["/dev/full", "cannot write", "No space left", "hint: free some space"],
    );
    assert!(fs::metadata("/dev/full").expect("the device").file_type().is_char_device());
    let output = bench.run("reference", &["--output", "/dev/stdout"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.lines().filter(|line| line.starts_with("{\"row\":")).count() == 4,
        "{text}"
    );
}

#[test]
fn a_run_that_diverges_says_so_and_keeps_what_was_before() {
    let bench = Bench::new("llava-tiny");
    let output = bench.run("train", &["learning_rate=1e30", "max_steps=6"]);
    refusal(&output, &["NaN", "hint: lower `learning_rate`", "the steps before are kept in", "checkpoint-"]);
}

//! Several processes that train together: the run is the one of a single process, and whatever ends one of them ends all.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, largest_difference, number, row};

const ADAPTER: &str = "adapter_model.safetensors";

/// Rows that hold whatever some objective asks for.
fn rows(count: usize) -> impl Iterator<Item = Value> {
    (0..count).map(|i| {
        let mut row = row(i, (i % 3 != 0).then_some(["wide.png", "odd.png"][i % 2]));
        row["aux_chosen"] = json!({"kind": 0.5 - (i % 2) as f64});
        row["aux_rejected"] = json!({"kind": 0.25});
        row
    })
}

/// `mdpo train` into the folder `out` as each rank: one for every list of keys of its own.
fn start(lab: &Lab, out: &str, keys: &[&str], own: &[&[&str]]) -> Vec<Child> {
    start_in(lab, out, keys, &own.iter().map(|own| (*own, Path::new("."))).collect::<Vec<_>>())
}

/// The same with a working directory for each rank.
fn start_in(lab: &Lab, out: &str, keys: &[&str], own: &[(&[&str], &Path)]) -> Vec<Child> {
    let recipe = lab.path(&format!("{out}.yaml"));
    fs::write(&recipe, lab.recipe(out)).expect("a recipe");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let world = own.len();
    let rank = |(rank, (own, folder)): (usize, &(&[&str], &Path))| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
        command.arg("train").arg(&recipe).args(keys).args(*own).current_dir(folder);
        command.env("OMP_NUM_THREADS", "1").env("GLOO_SOCKET_IFNAME", "lo");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("started")
    };
    own.iter().enumerate().map(rank).collect()
}

/// Exit code and messages of every rank.
fn finish(children: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let outcome = |child: Child| {
        let output = child.wait_with_output().expect("it ran");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    children.into_iter().map(outcome).collect()
}

/// Trains on `count` ranks; only the first has anything to say.
#[track_caller]
fn train(lab: &Lab, out: &str, keys: &[&str], count: usize) {
    for (rank, (code, said)) in finish(start(lab, out, keys, &vec![&[][..]; count])).iter().enumerate() {
        assert_eq!(*code, Some(0), "rank {rank}: {said}");
        assert!(rank == 0 || said.is_empty(), "rank {rank}: {said}");
    }
}

/// One figure of every log entry in `out`.
#[track_caller]
fn curve(lab: &Lab, out: &str, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(lab.path(out).join("trainer_state.json")).expect("the state");
    let state: Value = serde_json::from_str(&text).expect("JSON");
    state["log_history"].as_array().expect("a list").iter().map(|entry| number(&entry[name])).collect()
}

fn adapter(lab: &Lab, out: &str) -> Vec<u8> {
    fs::read(lab.path(out).join(ADAPTER)).expect("the adapter")
}

/// Of seven rows every second step has three, so that the last of four ranks has nothing to do. Worst differences measured: loss 4e-7, log-probs of
/// an answer 7e-6 nats, gradient norm 3e-6, adapter 4e-8; only the order in which gradients are added is another.
#[test]
fn one_two_and_four_ranks_train_alike() {
    let lab = Lab::new("llava-tiny", rows(7));
    for (name, keys) in [
        ("mdpo", &["loss_type=mdpo"][..]),
        ("kto", &["loss_type=kto"]),
        ("aot", &["loss_type=aot"]),
        ("hpo", &["loss_type=hpo", "rewards={kind: 1.0}"]),
    ] {
        let out = |count: usize| format!("{name}-{count}");
        for count in [1, 2, 4] {
            let times = format!("gradient_accumulation_steps={}", 4 / count);
            let keys = [keys, &["per_device_train_batch_size=1", "adam_epsilon=1e-4", &times]].concat();
            match count {
                1 => drop(lab.train(&out(1), &keys)),
                _ => train(&lab, &out(count), &keys, count),
            }
        }
        for count in [2, 4] {
            for metric in [
                "loss",
                "rewards/chosen",
                "rewards/accuracies",
                "logps/chosen",
                "kl",
                "grad_norm",
                "num_tokens",
                "entropy",
            ] {
                let (one, several) = (curve(&lab, &out(1), metric), curve(&lab, &out(count), metric));
                let gap = one.iter().zip(&several).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                println!("{name}, 1 and {count} ranks: {metric} {gap:.1e}");
                assert!(
                    one.len() == 4 && several.len() == 4 && gap <= 2e-5,
                    "{name}, {count} ranks: {metric} {gap:.1e}"
                );
            }
            let [one, several] = [1, count].map(|count| lab.path(&out(count)).join(ADAPTER));
            let gap = largest_difference(&one, &several);
            println!("{name}, 1 and {count} ranks: adapter {gap:.1e}");
            assert!(gap <= 1e-5, "{name}, {count} ranks: adapter {gap:.1e}");
        }
    }
}

#[test]
fn ranks_go_on_bit_for_bit_and_from_one_rank_where_a_step_stays_the_same() {
    let lab = Lab::new("llava-tiny", rows(7));
    let common = ["save_steps=2", "per_device_train_batch_size=1"];
    let two = [&common[..], &["gradient_accumulation_steps=2"]].concat();
    train(&lab, "straight", &two, 2);
    train(&lab, "again", &two, 2);
    assert!(adapter(&lab, "straight") == adapter(&lab, "again"), "two ranks twice");
    for file in ["checkpoint-4", ADAPTER] {
        let path = lab.path("again").join(file);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
    }
    train(&lab, "again", &[&two[..], &["resume_from_checkpoint=true"]].concat(), 2);
    assert!(adapter(&lab, "straight") == adapter(&lab, "again"), "resumed");
    // The same run begun by one process.
    lab.train("one", &[&common[..], &["gradient_accumulation_steps=4"]].concat());
    let from = format!("resume_from_checkpoint={}", lab.path("one/checkpoint-2").display());
    train(&lab, "from-one", &[&two[..], &[from.as_str()]].concat(), 2);
    assert!(largest_difference(&lab.path("one").join(ADAPTER), &lab.path("from-one").join(ADAPTER)) < 1e-4);
    let ended =
        finish(start(&lab, "other", &[&common[..], &["gradient_accumulation_steps=4", &from]].concat(), &[&[], &[]]));
    let (code, said) = &ended[0];
    assert_eq!(*code, Some(1), "{said}");
    for part in ["`examples per optimizer step` (was 4, is 8)", "× ranks (here 2)"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(ended[1], (Some(1), String::new()));
}

/// The first rank alone writes the file; it has what all of them computed, and a run that finds it is the run that made it.
#[test]
fn what_ranks_compute_of_the_reference_is_kept_once_for_all() {
    let lab = Lab::new("llava-tiny", rows(8));
    let cache = format!("reference_cache={}", lab.path("cache").display());
    let keys =
        ["per_device_train_batch_size=1", "gradient_accumulation_steps=2", "max_steps=6", "rejected_image_redraw=once"];
    let kept = || {
        let files = fs::read_dir(lab.path("cache")).expect("a folder").flatten().map(|file| file.path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        fs::read(files.remove(0)).expect("the file")
    };
    train(&lab, "without", &keys, 2);
    train(&lab, "first", &[&keys[..], &[cache.as_str(), "precompute_ref_log_probs=true"]].concat(), 2);
    let first = kept();
    // One process computes nothing new, so the two have left out nothing.
    lab.train("one", &["per_device_train_batch_size=1", "rejected_image_redraw=once", "max_steps=8", cache.as_str()]);
    assert!(kept() == first, "the second run found something missing");
    train(&lab, "second", &[&keys[..], &[cache.as_str()]].concat(), 2);
    for out in ["first", "second"] {
        assert!(adapter(&lab, "without") == adapter(&lab, out), "{out}");
    }
}

#[test]
fn a_problem_of_one_rank_ends_all_with_one_message() {
    let lab = Lab::new("llava-tiny", rows(8));
    let noise = |x: u32, y: u32| image::Rgb([(x * 37 % 256) as u8, (y * 91 % 256) as u8, (x * y % 256) as u8]);
    let picture = lab.path("half.jpg");
    image::RgbImage::from_fn(64, 48, noise).save(&picture).expect("written");
    let bytes = fs::read(&picture).expect("the picture");
    fs::write(&picture, &bytes[..bytes.len() / 2]).expect("written");
    // The row that breaks is in the second step, with one more beside it for the other rank.
    let broken = row(2, picture.to_str());
    lab.write_rows(rows(2).chain([broken]).chain(rows(3)));
    let keys = ["per_device_train_batch_size=1", "shuffle=false"];
    for loss in ["loss_type=mdpo", "loss_type=kto"] {
        let ended = finish(start(&lab, &loss[10..], &[&keys[..], &[loss]].concat(), &[&[], &[]]));
        let said = &ended[0].1;
        let problems = said.lines().filter(|line| line.starts_with("error: ")).count();
        assert!(ended[0].0 == Some(1) && problems == 1, "{said}");
        assert!(said.contains("row 3") || said.contains("line 3"), "{said}");
        assert!(said.contains("the steps before are kept in") && said.contains("checkpoint-1"), "{said}");
        assert_eq!(ended[1], (Some(1), String::new()), "{loss}");
    }
}

#[test]
fn ranks_with_other_recipes_are_refused() {
    let lab = Lab::new("llava-tiny", rows(4));
    let ended = finish(start(&lab, "out", &[], &[&[], &["learning_rate=1e-3"]]));
    let expected = "error: rank 1 of 2: not the run of rank 0: `learning_rate` (there 0.001, on rank 0 0.002)
  hint: ";
    assert!(ended[0].0 == Some(1) && ended[0].1.starts_with(expected), "{ended:?}");
    assert_eq!(ended[1], (Some(1), String::new()));
    let ended = finish(start(&lab, "out", &[], &[&[], &["learning_rate=high"]]));
    assert!(ended[0].1.contains("`learning_rate`") && ended[0].1.contains("(rank 1 of 2)"), "{ended:?}");
    assert_eq!(ended[1], (Some(1), String::new()));
    assert!(!lab.path("out").exists(), "nothing was written");
}

/// What is evaluated is the first rank's; others that hold out other rows (a folder of the same name on another machine) would train on them.
#[test]
fn ranks_that_hold_out_other_rows_are_refused() {
    let lab = Lab::new("llava-tiny", rows(4));
    let folders = ["here", "there"].map(|name| lab.path(name));
    for (count, folder) in folders.iter().enumerate() {
        fs::create_dir(folder).expect("a folder");
        let rows: String = (0..=count).map(|i| format!("{}\n", row(i + 9, None))).collect();
        fs::write(folder.join("held-out.jsonl"), rows).expect("rows");
    }
    let keys = ["loss_type=dpo", "eval_strategy=steps", "eval_dataset_name=held-out.jsonl"];
    let ended = finish(start_in(&lab, "out", &keys, &[(&[], folders[0].as_path()), (&[], folders[1].as_path())]));
    let expected = "error: rank 1 of 2: not the run of rank 0: `rows that are held out` (there ";
    assert!(ended[0].0 == Some(1) && ended[0].1.contains(expected), "{ended:?}");
    assert_eq!(ended[1], (Some(1), String::new()));
}

/// Waits until rank 0 has told of its first step; what it says afterwards comes when it ends.
fn stepped(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(lines.by_ref().any(|line| line.starts_with("step 1/")), "the run said nothing of its first step");
    lines
}

#[test]
fn a_killed_rank_ends_the_others_in_seconds_and_what_was_learned_is_kept() {
    let lab = Lab::new("llava-tiny", rows(4));
    let mut ranks = start(&lab, "out", &["max_steps=5000"], &[&[], &[]]);
    let lines = stepped(&mut ranks[0]);
    ranks[1].kill().expect("killed");
    let began = Instant::now();
    let said: Vec<String> = lines.collect();
    let code = ranks[0].wait().expect("ended").code();
    assert!(began.elapsed() < Duration::from_secs(10) && code == Some(1), "{said:?}");
    let said = said.join("\n");
    for part in [
        "the steps before are kept in",
        "error: rank 0 of 2: lost another rank: ",
        "hint: see what the other ranks say",
    ] {
        assert!(said.contains(part), "{said}");
    }
    ranks[1].wait().expect("ended");
}

#[test]
fn a_signal_to_any_rank_stops_all_at_the_same_step() {
    let lab = Lab::new("llava-tiny", rows(4));
    let keys = ["max_steps=5000", "save_steps=5000"];
    let mut ranks = start(&lab, "out", &keys, &[&[], &[]]);
    let lines = stepped(&mut ranks[0]);
    let kill = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", ranks[1].id())).status();
    assert!(kill.expect("sh").success());
    let said: Vec<String> = lines.collect();
    for (rank, mut child) in ranks.into_iter().enumerate() {
        assert_eq!(child.wait().expect("ended").code(), Some(130), "rank {rank}: {said:?}");
    }
    assert!(
        said.last().is_some_and(|line| line.starts_with("stopped; continue with `resume_from_checkpoint=true`")),
        "{said:?}"
    );
    // Weights of all ranks are compared before a checkpoint is written.
    let saved = fs::read_dir(lab.path("out")).expect("a folder").flatten();
    assert_eq!(saved.filter(|file| file.file_name().to_string_lossy().starts_with("checkpoint-")).count(), 1);
}

#[test]
fn verbs_for_one_process_refuse_several() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    command.args(["bench", "recipe.yaml"]).env("WORLD_SIZE", "2").env("RANK", "1");
    let said = command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", "1").output().expect("it ran").stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        said.starts_with("error: `WORLD_SIZE`: `mdpo bench` is for one process, and `WORLD_SIZE` is `2`"),
        "{said}"
    );
}

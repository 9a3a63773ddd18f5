//! The program itself, killed and stopped: what it left behind is enough to go on as if nothing had happened.

use mdpo::address::Address;
use rand::RngExt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, row};

const FILES: [&str; 2] = ["adapter_model.safetensors", "trainer_state.json"];

/// `mdpo train` on the lab's recipe.
fn command(lab: &Lab, out: &str, overrides: &[&str]) -> Command {
    let recipe = lab.path(&format!("{out}.yaml"));
    fs::write(&recipe, lab.recipe(out)).expect("a recipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    command.arg("train").arg(recipe).args(overrides).env("OMP_NUM_THREADS", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn finish(child: Child) {
    let output = child.wait_with_output().expect("it ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn adapter(lab: &Lab, out: &str) -> Vec<u8> {
    fs::read(lab.path(out).join(FILES[0])).expect("the adapter")
}

/// What is in the folder `out`, if it is there.
fn names(lab: &Lab, out: &str) -> Vec<String> {
    let entries = fs::read_dir(lab.path(out)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn checkpoints(lab: &Lab, out: &str) -> Vec<String> {
    names(lab, out).into_iter().filter(|name| name.starts_with("checkpoint-")).collect()
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_where_the_other_does() {
    let lab = Lab::with_images();
    let keys = ["max_steps=16", "save_steps=1", "save_total_limit=3", "resume_from_checkpoint=true"];
    let began = Instant::now();
    finish(command(&lab, "straight", &keys).spawn().expect("started"));
    let whole = began.elapsed().as_secs_f64();
    let mut moments = Address { seed: 7, epoch: 0, example: 0 }.rng("kill");
    let (mut killed, mut in_the_middle) = (0, 0);
    for _ in 0..5 {
        let mut child = command(&lab, "out", &keys).spawn().expect("started");
        std::thread::sleep(Duration::from_secs_f64(whole * moments.random_range(0.2..0.8)));
        killed += usize::from(child.try_wait().expect("a state").is_none());
        // A run that has already ended is no mistake: the moments are random.
        let _ = child.kill();
        child.wait().expect("ended");
        in_the_middle += usize::from(!checkpoints(&lab, "out").is_empty() && !lab.path("out").join(FILES[0]).exists());
    }
    println!("{killed} of 5 killed, {in_the_middle} between two checkpoints");
    assert!(killed > 0 && in_the_middle > 0, "every run ended before it was killed, or had not begun");
    finish(command(&lab, "out", &keys).spawn().expect("started"));
    assert!(adapter(&lab, "straight") == adapter(&lab, "out"), "the adapters differ after {killed} kills");
    assert!(names(&lab, "out").iter().all(|name| !name.starts_with('.')), "something unfinished is left");
}

#[test]
fn a_run_that_is_asked_to_stop_saves_and_goes_on_later() {
    let lab = Lab::with_images();
    let keys = ["max_steps=40", "save_steps=500"];
    finish(command(&lab, "straight", &keys).spawn().expect("started"));
    for signal in ["INT", "TERM"] {
        let out = format!("out-{signal}");
        let mut child = command(&lab, &out, &keys).spawn().expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let stepped = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("step 1/40"));
        assert!(stepped, "the run said nothing of its first step");
        let kill = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status();
        assert!(kill.expect("sh").success());
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        assert_eq!(child.wait().expect("ended").code(), Some(130), "{rest:?}");
        let last = rest.last().expect("a last word");
        let saved = checkpoints(&lab, &out);
        assert_eq!(saved.len(), 1, "{saved:?}");
        assert!(last.contains("resume_from_checkpoint=true") && last.contains(&saved[0]), "{last}");
        assert!(!lab.path(&out).join(FILES[0]).exists(), "nothing final is written");
        if signal == "INT" {
            continue;
        }
        finish(command(&lab, &out, &[&keys[..], &["resume_from_checkpoint=true"]].concat()).spawn().expect("started"));
        assert!(adapter(&lab, "straight") == adapter(&lab, &out), "SIG{signal}");
        assert!(lab.path(&out).join(FILES[1]).exists());
    }
}

/// All steps are done, and the run would end: the evaluation after the last one must not be lost for that.
#[test]
fn a_signal_in_the_last_evaluation_leaves_it_for_later() {
    let lab = Lab::with_images();
    let rows: String = (0..200).map(|i| format!("{}\n", row(i, Some("odd.png")))).collect();
    fs::write(lab.path("held-out.jsonl"), rows).expect("rows");
    let held_out = format!("eval_dataset_name={}", lab.path("held-out.jsonl").display());
    let keys = [held_out.as_str(), "eval_strategy=steps", "eval_steps=2", "max_steps=2", "save_steps=500"];
    let mut child = command(&lab, "out", &keys).spawn().expect("started");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    assert!(
        lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("step 2/2")),
        "the last step was not told"
    );
    let kill = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", child.id())).status();
    assert!(kill.expect("sh").success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("ended").code(), Some(130), "{rest:?}");
    assert_eq!(checkpoints(&lab, "out"), ["checkpoint-2"]);
    assert!(!lab.path("out").join(FILES[0]).exists(), "nothing final is written");
    finish(command(&lab, "out", &[&keys[..], &["resume_from_checkpoint=true"]].concat()).spawn().expect("started"));
    let state = fs::read_to_string(lab.path("out").join(FILES[1])).expect("a state");
    assert!(state.contains("eval_runtime"), "the evaluation was made up for");
}

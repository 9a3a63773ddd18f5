//! Data that is made ahead: what comes is what would be computed on the spot, and a problem comes at its own step.

use image::Rgb;
use mdpo::config::Run;
use mdpo::data::order::Order;
use mdpo::train::{Feed, Inputs, PictureCheck, Prepared, Share, Steps};
use serde_json::json;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::lab::{Lab, curve, number, row};

fn at_least_one(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("not zero")
}

fn steps<'a>(inputs: &'a Inputs, run: &Run) -> Steps<'a> {
    let per_step = at_least_one(run.batch.per_device * run.batch.accumulation);
    let order = Order::shuffled(at_least_one(inputs.examples.len()), per_step, run.seed);
    Steps { inputs, order, batch: run.batch.clone(), share: Share::ALL }
}

fn mixed() -> Lab {
    Lab::new("llava-tiny", (0..11).map(|i| row(i, (i % 4 != 3).then_some(["wide.png", "odd.png", "tall.png"][i % 3]))))
}

/// A whole JPEG, or the first half of one: the header says nothing of what is missing.
fn write_jpeg(path: &Path, whole: bool) {
    let noise = |x: u32, y: u32| Rgb([(x * 37 % 256) as u8, (y * 91 % 256) as u8, (x * y % 256) as u8]);
    image::RgbImage::from_fn(64, 48, noise).save(path).expect("written");
    if !whole {
        let bytes = fs::read(path).expect("the file");
        fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
    }
}

#[test]
fn what_the_feed_gives_is_what_is_computed_on_the_spot_and_sizes_are_true() {
    let lab = mixed();
    for keys in [&["gradient_accumulation_steps=2"][..], &["max_tokens_per_batch=300", "per_device_train_batch_size=5"]]
    {
        let run = lab.run("unused", keys);
        let inputs = Inputs::open(&run, PictureCheck::Header).expect("inputs");
        let steps = steps(&inputs, &run);
        let (first, end) = (1, 2 * steps.order.steps_per_epoch() + 1);
        let expected: Vec<Prepared> = (first..end)
            .map(|step| steps.step(step))
            .flat_map(|cut| cut.micros.into_iter().map(move |examples| (cut.epoch, examples)))
            .map(|(epoch, examples)| Prepared::read(&inputs, &examples, epoch).expect("a micro-batch"))
            .collect();
        for micro in &expected {
            let tokens: usize = micro.examples.iter().map(|&i| inputs.sizes[i].packed).sum();
            assert_eq!(tokens, micro.packed.ids.len());
            assert!(run.batch.max_tokens.is_none_or(|budget| tokens <= budget || micro.examples.len() == 1));
            for (&i, places) in micro.examples.iter().zip(&micro.pairs) {
                let chosen = places.chosen.expect("a chosen answer");
                assert_eq!(inputs.sizes[i].chosen_labels, micro.packed.responses[chosen].labels.len());
            }
        }
        for threads in [1, 4] {
            let found: Vec<Prepared> = std::thread::scope(|scope| {
                let feed = Feed::new(scope, steps.clone(), first..end, at_least_one(threads)).expect("a feed");
                feed.map(|micro| micro.expect("a micro-batch")).collect()
            });
            assert!(found == expected, "{threads} threads");
        }
    }
}

#[test]
fn a_feed_that_is_not_emptied_ends_its_threads() {
    let (ended, end) = mpsc::channel();
    let run = std::thread::spawn(move || {
        let lab = mixed();
        let run = lab.run("unused", &[]);
        let inputs = Inputs::open(&run, PictureCheck::Header).expect("inputs");
        std::thread::scope(|scope| {
            for taken in [0, 1, 5] {
                let mut feed =
                    Feed::new(scope, steps(&inputs, &run), 0..1000, at_least_one(taken + 1)).expect("a feed");
                for _ in 0..taken {
                    feed.next().expect("it has more").expect("a micro-batch");
                }
                assert!(taken == 0 || feed.take_waited() > 0.0);
                drop(feed);
            }
        });
        ended.send(()).expect("somebody waits");
    });
    end.recv_timeout(Duration::from_secs(60)).expect("a thread waits for room that never comes");
    run.join().expect("it ended well");
}

#[test]
fn a_picture_that_breaks_in_the_middle_is_told_at_its_step_and_the_steps_before_are_kept() {
    let picture = |i: usize| if i == 5 { "late.jpg" } else { "wide.png" };
    let lab = Lab::new("llava-tiny", []);
    for name in ["wide.png", "odd.png"] {
        fs::copy(crate::lab::parity("model/images").join(name), lab.path(name)).expect("an image");
    }
    lab.write_rows((0..8).map(|i| row(i, Some(picture(i)))));
    let folder = format!("image_folder={}", lab.path("").display());
    let keys = [folder.as_str(), "shuffle=false", "max_steps=4", "save_steps=100"];
    write_jpeg(&lab.path("late.jpg"), true);
    let straight = lab.train("straight", &keys);
    assert!(curve(&straight, "data_wait").iter().all(|wait| *wait >= 0.0));

    write_jpeg(&lab.path("late.jpg"), false);
    let message = lab.refused("out", &keys);
    for part in ["rows.jsonl line 6", "late.jpg: cannot decode the image", "hint:", "mdpo check", "max_skipped_rows"] {
        assert!(message.contains(part), "{message}");
    }
    let text = fs::read_to_string(lab.path("out/checkpoint-2/trainer_state.json")).expect("the steps before");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(number(&state["global_step"]), 2.0);
    // All pictures are looked at where rows may be left out, and in `mdpo check`.
    let refused =
        |check, keys: &[&str]| Inputs::open(&lab.run("unused", keys), check).map(|inputs| inputs.examples.len());
    let message = refused(PictureCheck::Decode, &keys).expect_err("a refusal").to_string();
    assert!(message.contains("1 of 8 rows cannot be used") && message.contains("line 6"), "{message}");
    assert_eq!(refused(PictureCheck::Header, &keys).ok(), Some(8));
    assert_eq!(refused(PictureCheck::Header, &[&keys[..], &["max_skipped_rows=1"]].concat()).ok(), Some(7));

    write_jpeg(&lab.path("late.jpg"), true);
    let resumed = lab.train("out", &[&keys[..], &["resume_from_checkpoint=true"]].concat());
    let adapter = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).expect("the adapter");
    assert!(adapter(&straight.folder) == adapter(&resumed.folder));
}

#[test]
fn images_that_rows_carry_train_like_those_in_files() {
    let lab = Lab::with_images();
    let rows = |carried: bool| {
        (0..8).map(move |i| {
            let name = ["wide.png", "tall.png"][i % 2];
            let mut row = row(i, Some(name));
            if carried {
                let bytes = fs::read(crate::lab::parity("model/images").join(name)).expect("an image");
                row["images"] = json!([{"bytes": base64(&bytes), "path": null}]);
            }
            row
        })
    };
    lab.write_rows(rows(false));
    let named = lab.train("named", &["rejected_image=random_image"]);
    lab.write_rows(rows(true));
    let carried = lab.train("carried", &["rejected_image=random_image"]);
    assert_eq!(curve(&named, "logps/corrupted"), curve(&carried, "logps/corrupted"));
    assert_eq!(curve(&named, "loss"), curve(&carried, "loss"));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let digits = [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift & 63) as usize]));
        text.extend(&digits[..three.len() + 1]);
    }
    text
}

//! Prompts that run forward and back side by side, on threads of their own, train as those that run one after the other.

use crate::lab::{DROPOUT, Lab, curve, largest_difference};

const ADAPTER: &str = "adapter_model.safetensors";
const MODEL: &str = "model.safetensors";

/// libtorch's threads for this test, set back to what the other tests have.
struct Threads;

impl Threads {
    fn three() -> Self {
        // With a remainder: four prompts are three side by side and one alone.
        tch::set_num_threads(3);
        Threads
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(1);
    }
}

#[test]
fn prompts_side_by_side_train_as_one_after_the_other_and_repeat_to_the_bit() {
    let lab = Lab::with_images();
    let full = ["use_peft=false", "lora_r=null", "trained_parts=[projector, language_model]"];
    // Worst found 7.1e-7 and 1.4e-5: AdamW moves what has next to no gradient by its sign.
    for (name, file, tolerance, more) in [
        ("lora", ADAPTER, 1e-5, &[][..]),
        ("layers", ADAPTER, 1e-5, &["gradient_checkpointing=layers"]),
        ("full", MODEL, 1e-4, &full),
        ("bf16", ADAPTER, f64::INFINITY, &["dtype=bfloat16"]),
    ] {
        let more = [&["per_device_train_batch_size=4"], more].concat();
        let after = lab.train(&format!("{name}-after"), &more);
        let threads = Threads::three();
        let [beside, again] = ["beside", "again"].map(|run| lab.train(&format!("{name}-{run}"), &more));
        drop(threads);
        let gap = largest_difference(&after.folder.join(file), &beside.folder.join(file));
        println!("{name}: {gap:.1e}");
        assert_eq!(largest_difference(&beside.folder.join(file), &again.folder.join(file)), 0.0, "{name}");
        assert_eq!(curve(&beside, "loss"), curve(&again, "loss"), "{name}");
        let losses = curve(&after, "loss").into_iter().zip(curve(&beside, "loss"));
        let apart = losses.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // A bf16 loss may be rounded otherwise; 0 was found.
        assert!(apart <= tolerance.min(1e-2), "{name}: losses {apart:.1e} apart");
        assert!(gap <= tolerance, "{name}: {gap:.1e}");
    }
}

#[test]
fn dropout_draws_alike_on_any_number_of_threads() {
    let _alone = DROPOUT.lock();
    let lab = Lab::with_images();
    let keys = ["lora_dropout=0.3", "per_device_train_batch_size=4"];
    let after = lab.train("after", &keys);
    let threads = Threads::three();
    let beside = lab.train("beside", &keys);
    drop(threads);
    let gap = largest_difference(&after.folder.join(ADAPTER), &beside.folder.join(ADAPTER));
    // Worst found 8.1e-6; other entries dropped would give a thousand times as much.
    assert!(gap <= 1e-4, "{gap:.1e}");
}

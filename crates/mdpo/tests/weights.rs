//! Checkpoints, adapters and merging against what transformers 5.23 and peft 0.21.2 wrote (`parity/weights/generate.py`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mdpo::weights::{
    AdapterConfig, Checkpoint, LoraPair, SafetensorsFile, TargetModules, check_finite, lora, merge, write_safetensors,
};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/weights").join(name)
}

/// A copy of a fixture that a test may damage.
fn copied(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("the test can set itself up");
    for entry in fs::read_dir(fixture(name)).expect("the test can set itself up") {
        let path = entry.expect("the test can set itself up").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("the test can set itself up")))
            .expect("the test can set itself up");
    }
    folder
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let file = SafetensorsFile::open(path).expect("the test can set itself up");
    file.entries()
        .iter()
        .map(|entry| (entry.name.clone(), file.tensor(entry).expect("the test can set itself up")))
        .collect()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

fn message<T>(result: mdpo::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn every_layout_gives_the_weights_of_transformers() {
    let expected: BTreeMap<String, BTreeMap<String, (Vec<i64>, f64)>> =
        serde_json::from_slice(&fs::read(fixture("expected.json")).expect("the test can set itself up"))
            .expect("the test can set itself up");
    for (folder, model, kind) in [
        ("llava", "llava", Kind::Float),
        ("llava_before_4_52", "llava", Kind::Float),
        ("llava_sharded_bf16", "llava_sharded_bf16", Kind::BFloat16),
        ("llama_f16", "llama_f16", Kind::Half),
    ] {
        let mut checkpoint = Checkpoint::open(&fixture(folder)).expect("the test can set itself up");
        assert!(checkpoint.names().eq(expected[model].keys()), "{folder}");
        for (name, (shape, sum)) in &expected[model] {
            assert!(checkpoint.has(name));
            assert_eq!(checkpoint.shape(name), Some(shape.as_slice()));
            let tensor = checkpoint.take(name, shape).expect("the test can set itself up");
            assert_eq!((checkpoint.kind(name), tensor.kind()), (Some(kind), kind));
            check_finite(&tensor, name).expect("the test can set itself up");
            // Sums of the same f64 values in another order; measured worst case 5.6e-17.
            let found = tensor.sum(Kind::Double).double_value(&[]);
            assert!((found - sum).abs() < 1e-13, "{folder} {name}: {sum} {found}");
        }
        checkpoint.finish().expect("the test can set itself up");
    }
}

#[test]
fn a_model_that_does_not_fit_its_checkpoint_is_told_how() {
    let mut checkpoint = Checkpoint::open(&fixture("llava")).expect("the test can set itself up");
    let missing = message(checkpoint.take("model.language_model.layers.0.self_attn.q_proj.bias", &[16]));
    assert!(
        missing.contains("tensor `model.language_model.layers.0.self_attn.q_proj.bias`: expected among the 48 tensors"),
        "{missing}"
    );
    assert!(
        missing.contains("hint: the nearest names are `model.language_model.layers.0.self_attn.q_proj.weight`"),
        "{missing}"
    );
    let shape = message(checkpoint.take("lm_head.weight", &[16, 24]));
    assert!(
        shape.contains(
            "model.safetensors: tensor `language_model.lm_head.weight`: expected the shape [16, 24], found [24, 16]"
        ),
        "{shape}"
    );
    let _ = checkpoint.take("lm_head.weight", &[24, 16]).expect("the test can set itself up");
    let twice = message(checkpoint.take("lm_head.weight", &[24, 16]));
    assert!(twice.contains("`language_model.lm_head.weight`: is used by two parts"), "{twice}");
    checkpoint.ignore("model.language_model.norm.weight");
    checkpoint.ignore("not there");
    let unused = message(checkpoint.finish());
    assert!(
        unused
            .contains("found 46 that no part of the model has a place for: `language_model.model.embed_tokens.weight`"),
        "{unused}"
    );
    assert!(unused.contains(", …\n  hint: the architecture in config.json"), "{unused}");
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let folder = copied("llava_sharded_bf16");
    let path = |name: &str| folder.path().join(name);
    let (first, second) = (path("model-00001-of-00002.safetensors"), path("model-00002-of-00002.safetensors"));
    let index = fs::read_to_string(path("model.safetensors.index.json")).expect("the test can set itself up");
    let open = || message(Checkpoint::open(folder.path()));
    let with_index = |text: &str| {
        fs::write(path("model.safetensors.index.json"), text).expect("the test can set itself up");
        open()
    };
    let cases = [
        (with_index("{}"), "missing field `weight_map`"),
        (with_index("{\"weight_map\":{}}"), "expected at least one tensor"),
        (with_index("{\"weight_map\":{\"a\":\"../x\"}}"), "expected shards beside the index, found `../x`"),
        (with_index(&index.replace("\"lm_head.weight\"", "\"lm_tail.weight\"")), "2 problems"),
        (
            with_index(&index.replace("\"lm_head.weight\": \"model-00002", "\"lm_head.weight\": \"model-00001")),
            "tensor `lm_head.weight`: is listed in model.safetensors.index.json for `model-00001-of-00002.safetensors`",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "expected {expected}\nfound {found}");
    }
    fs::write(path("model.safetensors.index.json"), &index).expect("the test can set itself up");
    Checkpoint::open(folder.path()).expect("the test can set itself up");

    let bytes = fs::read(&first).expect("the test can set itself up");
    fs::write(&first, &bytes[..bytes.len() - 100]).expect("the test can set itself up");
    assert!(
        open().contains(
            "model-00001-of-00002.safetensors: expected 7496 bytes of tensors, found 7396: the file is cut short"
        ),
        "{}",
        open()
    );
    fs::write(&first, []).expect("the test can set itself up");
    assert!(open().contains("model-00001-of-00002.safetensors: cannot read: the file is empty"), "{}", open());
    fs::write(&first, &bytes).expect("the test can set itself up");
    fs::remove_file(&second).expect("the test can set itself up");
    assert!(
        open().contains("model-00002-of-00002.safetensors: is listed in model.safetensors.index.json and missing"),
        "{}",
        open()
    );
    fs::remove_file(path("model.safetensors.index.json")).expect("the test can set itself up");
    fs::write(path("pytorch_model.bin"), []).expect("the test can set itself up");
    assert!(open().contains("found pytorch_model.bin\n  hint: pickled weights are not read"), "{}", open());
    assert!(message(Checkpoint::open(&path("nowhere"))).contains("cannot read"));

    let both = BTreeMap::from([("lm_head.weight", Tensor::ones([2], (Kind::Float, Device::Cpu)))]);
    let twin = Tensor::ones([2], (Kind::Float, Device::Cpu));
    let pairs = both.iter().map(|(name, tensor)| (*name, tensor)).chain([("language_model.lm_head.weight", &twin)]);
    write_safetensors(&path("model.safetensors"), pairs, &BTreeMap::new()).expect("the test can set itself up");
    assert!(open().contains("`lm_head.weight`: is the same weight as"), "{}", open());
    write_safetensors(&path("model.safetensors"), [("w", &twin.to_kind(Kind::Int8))], &BTreeMap::new())
        .expect("the test can set itself up");
    assert!(open().contains("tensor `w`: expected F32, F16 or BF16, found I8"), "{}", open());
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
        for (bad, count) in [(vec![1.0, f32::NAN, 2.0], 1), (vec![f32::INFINITY, 0.0, f32::NEG_INFINITY], 2)] {
            let found = message(check_finite(&Tensor::from_slice(&bad).to_kind(kind), "w"));
            assert!(found.starts_with(&format!("tensor `w`: expected finite numbers, found {count} of 3")), "{found}");
        }
        check_finite(&Tensor::from_slice(&[1f32, -3.0]).to_kind(kind), "w").expect("the test can set itself up");
    }
    check_finite(&Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)), "w").expect("the test can set itself up");
}

#[test]
fn the_hash_follows_the_contents() {
    let folder = copied("llava_sharded_bf16");
    let hash = |folder: &Path| {
        Checkpoint::open(folder).expect("the test can set itself up").hash().expect("the test can set itself up")
    };
    let before = hash(&fixture("llava_sharded_bf16"));
    assert_eq!((before.len(), hash(folder.path())), (64, before.clone()));
    let shard = folder.path().join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).expect("the test can set itself up");
    *bytes.last_mut().expect("the test can set itself up") ^= 1;
    fs::write(&shard, bytes).expect("the test can set itself up");
    assert_ne!(hash(folder.path()), before);
}

#[test]
fn adapters_of_peft_are_read_and_written_byte_for_byte() {
    for name in ["adapter_llava", "adapter_llama"] {
        let adapter = lora::read(&fixture(name)).expect("the test can set itself up");
        let folder = tempfile::tempdir().expect("the test can set itself up");
        lora::write(folder.path(), &adapter.config, &adapter.tensors).expect("the test can set itself up");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let (ours, peft) = (
                fs::read(folder.path().join(file)).expect("the test can set itself up"),
                fs::read(fixture(name).join(file)).expect("the test can set itself up"),
            );
            assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&peft), "{name} {file}");
        }
    }
    let llava = lora::read(&fixture("adapter_llava")).expect("the test can set itself up");
    let modules: Vec<&str> = llava.tensors.keys().map(String::as_str).collect();
    assert_eq!(
        modules,
        [
            "model.language_model.layers.0.mlp.down_proj",
            "model.language_model.layers.0.self_attn.q_proj",
            "model.language_model.layers.1.mlp.down_proj",
            "model.language_model.layers.1.self_attn.q_proj",
        ]
    );
    let scales: Vec<f64> = modules.iter().map(|module| llava.config.scale(module)).collect();
    assert_eq!(scales, [5.0 / 2f64.sqrt(), 6.0 / 2f64.sqrt(), 5.0 / 2f64.sqrt(), 6.0 / 3f64.sqrt()]);
    assert_eq!(
        lora::read(&fixture("adapter_llama"))
            .expect("the test can set itself up")
            .config
            .scale("model.layers.0.self_attn.v_proj"),
        3.0
    );
}

#[test]
fn old_module_paths_mean_the_same_adapter() {
    let (new, old) = (
        lora::read(&fixture("adapter_llava")).expect("the test can set itself up"),
        lora::read(&fixture("adapter_llava_before_4_52")).expect("the test can set itself up"),
    );
    assert!(new.tensors.keys().eq(old.tensors.keys()));
    for (module, pair) in &new.tensors {
        assert_eq!((&pair.a, &pair.b), (&old.tensors[module].a, &old.tensors[module].b));
        assert_eq!(new.config.scale(module), old.config.scale(module), "{module}");
        assert_eq!(new.config.rank(module), old.config.rank(module), "{module}");
    }
    assert_eq!(old.config.target_modules, None);
}

#[test]
fn adapters_that_are_not_plain_lora_are_refused_by_field() {
    let folder = copied("adapter_llava");
    let path = folder.path().join("adapter_config.json");
    let good = fs::read_to_string(&path).expect("the test can set itself up");
    for (from, to, expected) in [
        ("\"use_dora\": false", "\"use_dora\": true", "`use_dora`: expected nothing, found true"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "`bias`: expected \"none\", found \"all\""),
        ("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "`modules_to_save`: expected nothing"),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "`peft_type`: expected \"LORA\""),
        (
            "\"init_lora_weights\": true",
            "\"init_lora_weights\": \"pissa_niter_4\"",
            "`init_lora_weights`: expected a start",
        ),
        ("\"r\": 2", "\"r\": 0", "`r`: expected a whole number from 1, found 0"),
        ("\"r\": 2", "\"r\": 4", "expected [4, in] and [out, 4] by adapter_config.json, found [2, 24] and [16, 2]"),
        ("\"lora_alpha\": 6", "\"lora_alpha\": \"6\"", "`lora_alpha`: expected a number, found \"6\""),
        ("down_proj\": 5", "down_proj(\": 5", "`alpha_pattern`: expected an object of regular expressions"),
        ("{", "", "adapter_config.json: expected a JSON object"),
    ] {
        assert!(good.contains(from));
        fs::write(&path, good.replacen(from, to, 1)).expect("the test can set itself up");
        let found = message(lora::read(folder.path()));
        assert!(found.contains(expected), "expected {expected}\nfound {found}");
    }
    fs::write(&path, &good).expect("the test can set itself up");
    let weights = folder.path().join("adapter_model.safetensors");
    let one = Tensor::ones([2, 16], (Kind::Float, Device::Cpu));
    for (key, expected) in [
        (
            "base_model.model.lm_head.lora_A.weight",
            "tensor `base_model.model.lm_head`: expected both `lora_A` and `lora_B`",
        ),
        (
            "base_model.model.x.lora_magnitude_vector",
            "tensor `base_model.model.x.lora_magnitude_vector`: expected `base_model.model.<module>",
        ),
    ] {
        write_safetensors(&weights, [(key, &one)], &BTreeMap::new()).expect("the test can set itself up");
        let found = message(lora::read(folder.path()));
        assert!(found.contains(expected), "expected {expected}\nfound {found}");
    }
    fs::remove_file(&weights).expect("the test can set itself up");
    fs::write(folder.path().join("adapter_model.bin"), []).expect("the test can set itself up");
    assert!(message(lora::read(folder.path())).contains("pickled adapters are not read"));
}

#[test]
fn merged_weights_are_those_of_peft() {
    let folder = tempfile::tempdir().expect("the test can set itself up");
    let out = folder.path().join("merged");
    merge(&fixture("llava"), &fixture("adapter_llava"), &out).expect("the test can set itself up");
    assert_eq!(
        fs::read(out.join("config.json")).expect("the test can set itself up"),
        fs::read(fixture("llava/config.json")).expect("the test can set itself up")
    );
    let (before, after) = (tensors(&fixture("llava/model.safetensors")), tensors(&out.join("model.safetensors")));
    assert!(before.keys().eq(after.keys()));
    let golden = tensors(&fixture("adapter_llava_merged.safetensors"));
    assert_eq!(golden.len(), 4);
    for (name, tensor) in &after {
        match golden.get(&mdpo::weights::names::canonical(name).into_owned()) {
            // Measured worst case 0: the same three f32 operations.
            Some(golden) => assert!(worst(tensor, golden) < 1e-7 && worst(tensor, &before[name]) > 0.01, "{name}"),
            None => assert_eq!(tensor, &before[name], "{name}"),
        }
    }
    let file = |path: &Path| SafetensorsFile::open(path).expect("the test can set itself up").metadata().clone();
    assert_eq!(file(&out.join("model.safetensors")), file(&fixture("llava/model.safetensors")));
    assert_eq!(
        fs::read_dir(folder.path()).expect("the test can set itself up").count(),
        1,
        "no temporary folder is left"
    );
}

#[test]
fn merging_keeps_shards_and_precision() {
    let folder = tempfile::tempdir().expect("the test can set itself up");
    merge(&fixture("llava_sharded_bf16"), &fixture("adapter_llava_before_4_52"), folder.path())
        .expect("the test can set itself up");
    let golden = tensors(&fixture("adapter_llava_merged.safetensors"));
    let mut seen = 0;
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        for (name, tensor) in tensors(&folder.path().join(shard)) {
            assert_eq!(tensor.kind(), Kind::BFloat16);
            if let Some(golden) = golden.get(&name) {
                seen += 1;
                // bf16 rounds the base and the sum: at most 2^-9 of each; measured worst case 5.8e-4 of values up to 0.25.
                assert!(worst(&tensor, golden) < 2e-3, "{name}: {}", worst(&tensor, golden));
            }
        }
    }
    assert_eq!(seen, 4);
    assert!(folder.path().join("model.safetensors.index.json").exists());
    Checkpoint::open(folder.path()).expect("the test can set itself up");
}

#[test]
fn a_merge_that_cannot_be_done_leaves_nothing() {
    let folder = tempfile::tempdir().expect("the test can set itself up");
    let out = folder.path().join("out");
    let other = message(merge(&fixture("llama_f16"), &fixture("adapter_llava"), &out));
    assert!(other.contains(
        "4 problems\nmodule `model.language_model.layers.0.mlp.down_proj`: is in the adapter and not in the checkpoint"
    ));
    assert!(other.contains("hint: the adapter belongs to another model"));
    fs::create_dir(&out).expect("the test can set itself up");
    fs::write(out.join("precious"), "x").expect("the test can set itself up");
    let full = message(merge(&fixture("llava"), &fixture("adapter_llava"), &out));
    assert!(full.contains("expected a folder that is empty or not there yet"), "{full}");
    assert_eq!(fs::read_dir(folder.path()).expect("the test can set itself up").count(), 1);
}

/// Adapters on every linear layer, and merged checkpoints, for `parity/weights/check_peft.py`.
#[test]
fn fresh_adapters_name_only_the_language_model() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("check_peft");
    let _ = fs::remove_dir_all(&root);
    let pattern = r".*language_model.*\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)";
    let names =
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"].map(str::to_owned).to_vec();
    let folders = ["llava", "llava_sharded_bf16", "llama_f16"];
    let targets = [
        TargetModules::Pattern(pattern.to_owned()),
        TargetModules::Pattern(pattern.to_owned()),
        TargetModules::Names(names),
    ];
    for (name, expected) in folders.iter().zip(targets) {
        let checkpoint = Checkpoint::open(&fixture(name)).expect("the test can set itself up");
        let config = AdapterConfig { r: 4, alpha: 8.0, ..AdapterConfig::default() };
        let linear = checkpoint.names().filter(|name| name.ends_with("_proj.weight") && !name.contains("vision"));
        let wave = |size: [i64; 2], step: f64| {
            (Tensor::arange(size[0] * size[1], (Kind::Float, Device::Cpu)) * step).sin().view(size) * 0.1
        };
        let tensors: BTreeMap<String, LoraPair> = linear
            .map(|name| {
                let shape = checkpoint.shape(name).expect("the test can set itself up");
                let pair = LoraPair { a: wave([4, shape[1]], 0.37), b: wave([shape[0], 4], 0.71) };
                (name.trim_end_matches(".weight").to_owned(), pair)
            })
            .collect();
        assert_eq!(tensors.len(), 14);
        let adapter = root.join(name).join("adapter");
        lora::write(&adapter, &config, &tensors).expect("the test can set itself up");
        let read = lora::read(&adapter).expect("the test can set itself up");
        assert_eq!(read.config, AdapterConfig { target_modules: Some(expected), ..config.clone() });
        let bytes = fs::read(adapter.join("adapter_model.safetensors")).expect("the test can set itself up");
        lora::write(&adapter, &config, &read.tensors).expect("the test can set itself up");
        assert_eq!(
            fs::read(adapter.join("adapter_model.safetensors")).expect("the test can set itself up"),
            bytes,
            "the same bytes again"
        );
        merge(&fixture(name), &adapter, &root.join(name).join("merged")).expect("the test can set itself up");

        // One module less, and the names alone would say too much.
        let fewer: BTreeMap<String, LoraPair> = read.tensors.into_iter().skip(1).collect();
        lora::write(&root.join(name).join("fewer"), &config, &fewer).expect("the test can set itself up");
        let listed =
            lora::read(&root.join(name).join("fewer")).expect("the test can set itself up").config.target_modules;
        assert_eq!(listed, Some(TargetModules::Names(fewer.into_keys().collect())));
    }
    assert!(
        message(lora::write(&root.join("none"), &AdapterConfig::default(), &BTreeMap::new())).contains("found none")
    );
}

//! Answers against transformers' `generate` (greedy, f32) on the tiny checkpoints of `parity/model`, and the verb `mdpo generate`.

use mdpo::data::ImageSource;
use mdpo::eval::{
    Answer, Ask, Decoding, EarlyStopping, End, Generation, Request, Sampling, Search, Settings, answer_all,
};
use mdpo::image::Pixels;
use mdpo::model::language::Keep;
use mdpo::model::load::Plan;
use mdpo::model::{DeviceBatch, Model, Shape, States};
use mdpo::nn::{Pass, Role};
use mdpo::text::pack::PackedBatch;
use mdpo::text::{ImageSlot, Tokens};
use mdpo::{Error, train, weights};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

const MODELS: [&str; 6] =
    ["llava-tiny", "llava-tiny-full", "llava-tiny-bf16", "llama-tiny", "mistral-tiny", "qwen2-tiny"];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity").join(path)
}

fn model(folder: &Path, adapter: Option<&Path>) -> Model {
    let adapter = adapter.map(|folder| weights::lora::read(folder).expect("the test can set itself up"));
    Model::load(folder, Kind::Float, Device::Cpu, Plan::Frozen { adapter }).expect("the test can set itself up")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The prompt of a case with its image slots.
fn prompt(shape: &Shape, case: &Value) -> Tokens {
    let ids = ids(&case["prompt_ids"]);
    let images = shape.vision.as_ref().map_or(Vec::new(), |vision| {
        let len = vision.tokens_per_image();
        let places: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == vision.image_token).collect();
        places.chunks(len).enumerate().map(|(image, run)| ImageSlot { start: run[0], len, image }).collect()
    });
    Tokens { counted: vec![false; ids.len()], ids, images, ..Tokens::default() }
}

/// The images of a case: as transformers made them where one is transparent, else decoded and processed by us.
///
/// Its processor lays transparent pictures on white, ours is given them as Pillow's `convert("RGB")` does, without blending.
fn pixels(folder: &Path, shape: &Shape, case: &Value) -> Vec<Pixels> {
    let files = case["images"].as_array().map_or(&[][..], Vec::as_slice);
    if files.iter().any(|file| file.as_str().is_some_and(|file| file.ends_with("rgba.png"))) {
        let name = format!("{}.pixel_values", case["name"].as_str().expect("a name"));
        let tensors = Tensor::read_safetensors(folder.join("expected.safetensors")).expect("tensors");
        let values = tensors.into_iter().find(|(other, _)| *other == name).expect("pixel values").1;
        let side = values.size()[2] as usize;
        let flat = |image: &Tensor| Vec::<f32>::try_from(image.flatten(0, -1)).expect("floats");
        return values.unbind(0).iter().map(|i| Pixels { height: side, width: side, values: flat(i) }).collect();
    }
    let processor = train::processor(folder, shape).expect("the test can set itself up");
    let read = |file: &Value| {
        let path = fixture("model").join(file.as_str().expect("a path"));
        processor
            .as_ref()
            .expect("eyes")
            .process(&train::picture(&ImageSource::Path(path)).expect("the test can set itself up"))
    };
    files.iter().map(read).collect()
}

fn answer(model: &Model, request: Request) -> (Vec<u32>, Option<End>) {
    let mut generation = Generation::start(model, request).expect("the test can set itself up");
    let ids = generation.by_ref().collect::<Result<Vec<_>, _>>().expect("the test can set itself up");
    (ids, generation.end())
}

fn cases(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("cases.json")).expect("cases.json");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    file["cases"].as_array().expect("cases").clone()
}

#[test]
fn greedy_answers_are_transformers_token_for_token() {
    let (mut compared, mut with_images) = (0, 0);
    for name in MODELS {
        let folder = fixture("model").join(name);
        let model = model(&folder, None);
        for case in cases(&folder).iter().filter(|case| !case["generated_ids"].is_null()) {
            let (prompt, images) = (prompt(&model.shape, case), pixels(&folder, &model.shape, case));
            let expected = ids(&case["generated_ids"]);
            let request = Request {
                prompt: &prompt,
                images: &images,
                sampling: Sampling::Greedy,
                max_new_tokens: expected.len(),
                stop: &[2],
            };
            let found = answer(&model, request);
            assert_eq!(found, (expected, Some(End::MaxNewTokens)), "{name} {}", case["name"]);
            compared += 1;
            with_images += usize::from(!images.is_empty());
        }
    }
    assert_eq!((compared, with_images), (14, 5));
}

#[test]
fn the_cache_gives_what_the_whole_sequence_gives_with_and_without_adapter() {
    let pass = Pass::of(Role::Policy);
    let mut answers = Vec::new();
    for name in ["llava-tiny", "llama-tiny"] {
        let folder = fixture("model").join(name);
        for adapter in [None, Some(folder.join("adapter"))] {
            let model = model(&folder, adapter.as_deref());
            let case = cases(&folder).pop().expect("a case");
            let (prompt, images) = (prompt(&model.shape, &case), pixels(&folder, &model.shape, &case));
            let request =
                Request { prompt: &prompt, images: &images, sampling: Sampling::Greedy, max_new_tokens: 8, stop: &[] };
            let (found, _) = answer(&model, request);
            let mut whole = prompt.clone();
            for &id in &found {
                let mut packed = PackedBatch::default();
                packed.push(&whole, &[], |image| image);
                let features = tch::no_grad(|| model.features(&images.iter().collect::<Vec<_>>(), pass));
                let batch = DeviceBatch::with_states(packed, Device::Cpu, States::All);
                let run = model.forward(&batch, features.as_ref(), pass, Keep::Nothing);
                let last = run.hidden().get(whole.ids.len() as i64 - 1);
                let best = model.language.head(pass).matmul(&last).argmax(0, false).int64_value(&[]);
                assert_eq!(i64::from(id), best, "{name} {adapter:?}");
                whole.ids.push(id);
                whole.counted.push(true);
            }
            answers.push(found);
        }
    }
    assert!(answers[0] != answers[1] && answers[2] != answers[3], "the adapters change nothing: {answers:?}");
}

#[test]
fn an_answer_ends_at_a_stop_id_or_at_the_model_s_limit() {
    let folder = fixture("model/llama-tiny");
    let mut model = model(&folder, None);
    let case = &cases(&folder)[0];
    let (prompt, expected) = (prompt(&model.shape, case), ids(&case["generated_ids"]));
    let request = Request {
        prompt: &prompt,
        images: &[],
        sampling: Sampling::Greedy,
        max_new_tokens: 12,
        stop: &[7, expected[2]],
    };
    assert_eq!(answer(&model, request), (expected[..3].to_vec(), Some(End::Stop)));

    let request = Request { stop: &[2], ..request };
    let limit = prompt.ids.len() + 4;
    model.shape.language.max_length = limit;
    assert_eq!(answer(&model, request), (expected[..4].to_vec(), Some(End::ModelLimit(limit))));
    model.shape.language.max_length = prompt.ids.len();
    let refused = Generation::start(&model, request).unwrap_err().to_string();
    assert!(
        refused.contains("leave no room for an answer") && refused.contains("`max_position_embeddings`"),
        "{refused}"
    );
    let pixels = [Pixels { height: 1, width: 1, values: vec![0.0; 3] }];
    let refused = Generation::start(&model, Request { images: &pixels, ..request }).unwrap_err().to_string();
    assert!(refused.contains("0 image slots for 1 images"), "{refused}");
}

#[test]
fn sampling_is_a_function_of_its_seed() {
    let folder = fixture("model/llama-tiny");
    let model = model(&folder, None);
    let case = &cases(&folder)[0];
    let prompt = prompt(&model.shape, case);
    let ask = |temperature, top_p, top_k, seed| {
        let sampling = Sampling::new(temperature, top_p, top_k, seed).expect("the test can set itself up");
        answer(&model, Request { prompt: &prompt, images: &[], sampling, max_new_tokens: 12, stop: &[] }).0
    };
    let greedy = ids(&case["generated_ids"]);
    assert_eq!(ask(1.0, 1.0, 0, 5), ask(1.0, 1.0, 0, 5));
    assert_ne!(ask(1.0, 1.0, 0, 5), ask(1.0, 1.0, 0, 6));
    assert_ne!(ask(1.0, 1.0, 0, 5), greedy);
    assert_eq!(ask(1.0, 1.0, 1, 5), greedy);
    assert_eq!(ask(1.0, 1e-9, 0, 5), greedy);
    assert_eq!(ask(1e-5, 1.0, 0, 5), greedy);
}

/// The decoding and stop ids of a run in `parity/generation`.
fn settings(run: &Value, max_new_tokens: usize, batch_size: usize) -> Settings {
    let number = |key: &str| run[key].as_f64();
    let early_stopping = match &run["early_stopping"] {
        Value::Bool(true) => Some(EarlyStopping::Yes),
        Value::Bool(false) => Some(EarlyStopping::Heuristic),
        Value::String(_) => Some(EarlyStopping::Never),
        _ => None,
    };
    let search = Search { length_penalty: number("length_penalty"), early_stopping };
    let beams = number("num_beams").expect("a number") as usize;
    let decoding = Decoding::new(Sampling::Greedy, beams, search).expect("the test can set itself up");
    Settings { decoding, max_new_tokens, stop: ids(&run["eos_token_id"]), batch_size }
}

/// The answers in the order of their questions.
fn answers(model: &Model, asks: &[Ask], settings: &Settings) -> Vec<Answer> {
    let mut found: Vec<Option<Answer>> = vec![None; asks.len()];
    let take = |index: usize, answer: Answer| {
        assert!(found[index].replace(answer).is_none(), "question {index} is answered twice");
        Ok(())
    };
    answer_all(model, asks.iter().cloned().map(Ok), settings, take).expect("the test can set itself up");
    found.into_iter().map(|answer| answer.expect("every question is answered")).collect()
}

fn asks(folder: &Path, shape: &Shape, prompts: &Value) -> Vec<Ask> {
    let prompts = prompts.as_array().expect("prompts");
    let ask = |(number, case): (usize, &Value)| {
        let images = pixels(folder, shape, case).into_iter().map(Arc::new).collect();
        Ask { prompt: prompt(shape, case), images, number: number as u64 }
    };
    prompts.iter().enumerate().map(ask).collect()
}

#[test]
fn batches_are_answered_as_transformers_answers_them_greedily_and_by_beam_search() {
    let file = std::fs::read_to_string(fixture("generation/answers.json")).expect("answers.json");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let (mut compared, mut stopped, mut with_images) = (0, 0, 0);
    for case in file["models"].as_array().expect("models") {
        let folder = fixture("model").join(case["model"].as_str().expect("a name"));
        let adapter = case["adapter"].as_str().map(|name| folder.join(name));
        let model = model(&folder, adapter.as_deref());
        let asks = asks(&folder, &model.shape, &case["prompts"]);
        let most = case["max_new_tokens"].as_u64().expect("a number") as usize;
        for run in case["runs"].as_array().expect("runs") {
            // All at once, one after the other, and as places become free.
            for batch_size in [asks.len(), 1, 2] {
                let settings = settings(run, most, batch_size);
                let found = answers(&model, &asks, &settings);
                for (i, (found, expected)) in found.iter().zip(run["answers"].as_array().expect("answers")).enumerate()
                {
                    let place = format!("{folder:?} {adapter:?} prompt {i}, {settings:?}");
                    assert_eq!(found.ids, ids(expected), "{place}");
                    let stops = found.ids.last().is_some_and(|id| settings.stop.contains(id));
                    assert_eq!(found.end, if stops { End::Stop } else { End::MaxNewTokens }, "{place}");
                    compared += 1;
                    stopped += usize::from(stops);
                    with_images += usize::from(!asks[i].images.is_empty());
                }
            }
        }
    }
    assert_eq!((compared, stopped, with_images), (972, 519, 324));
}

#[test]
fn a_sampled_answer_does_not_depend_on_what_else_is_asked() {
    let folder = fixture("model/llava-tiny");
    let model = model(&folder, None);
    let file = std::fs::read_to_string(fixture("generation/answers.json")).expect("answers.json");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let asks = asks(&folder, &model.shape, &file["models"][0]["prompts"]);
    let sampling = Sampling::new(1.0, 0.9, 40, 3).expect("the test can set itself up");
    // Longer than the rows that an answer begins with.
    let settings = |batch_size| Settings {
        decoding: Decoding::Sampling(sampling),
        max_new_tokens: 90,
        stop: vec![2, 7, 30],
        batch_size,
    };
    let together = answers(&model, &asks, &settings(4));
    let mut turned: Vec<Ask> = asks.clone();
    turned.reverse();
    let mut again = answers(&model, &turned, &settings(3));
    again.reverse();
    assert_eq!(together, again);
    for (ask, expected) in asks.iter().zip(&together) {
        assert_eq!(&answers(&model, std::slice::from_ref(ask), &settings(1))[0], expected);
    }
    let mut lengths: Vec<usize> = together.iter().map(|answer| answer.ids.len()).collect();
    lengths.sort_unstable();
    assert!(lengths[0] < lengths[4] && lengths[4] > 32, "{lengths:?}");
    let other = Ask { number: 17, ..asks[0].clone() };
    assert_ne!(answers(&model, &[other], &settings(1))[0], together[0]);
}

#[test]
fn a_question_that_cannot_be_asked_ends_the_run_after_those_before_it() {
    let folder = fixture("model/llama-tiny");
    let model = model(&folder, None);
    let case = &cases(&folder)[0];
    let ask = Ask { prompt: prompt(&model.shape, case), images: Vec::new(), number: 0 };
    let decoding = Decoding::Sampling(Sampling::Greedy);
    let settings = Settings { decoding, max_new_tokens: 5, stop: vec![2], batch_size: 4 };
    let mut answered = Vec::new();
    let asks = [Ok(ask.clone()), Ok(ask.clone()), Err(Error::at("here", "is wrong")), Ok(ask)];
    let done = answer_all(&model, asks, &settings, |index, answer| {
        answered.push((index, answer.ids.len()));
        Ok(())
    });
    assert_eq!((done.unwrap_err().to_string(), answered), ("here: is wrong".to_owned(), vec![(0, 5), (1, 5)]));
}

/// Runs `mdpo generate` on the CPU in f32, with `input` on its standard input.
fn verb(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    command.args(["generate", "--device", "cpu", "--dtype", "float32"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // A run that refuses its arguments never reads.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn refusal(arguments: &[&str]) -> String {
    let output = verb(arguments, "");
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A copy of a fixture checkpoint that a test may change.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("the test can set itself up");
    for file in std::fs::read_dir(fixture("model").join(name))
        .expect("the test can set itself up")
        .map(|file| file.expect("the test can set itself up").path())
    {
        if file.is_file() {
            std::fs::copy(&file, folder.path().join(file.file_name().expect("a name")))
                .expect("the test can set itself up");
        }
    }
    let path = folder.path().to_owned();
    (folder, path)
}

#[test]
fn the_verb_prints_the_answer() {
    let folder = fixture("model/llava-tiny");
    let wide = fixture("model/images/wide.png");
    let encoder = train::encoder(&folder, &Shape::read(&folder).expect("the test can set itself up"))
        .expect("the test can set itself up");
    for case in cases(&folder).iter().take(2) {
        let expected =
            encoder.tokenizer().decode(&ids(&case["generated_ids"])).expect("the test can set itself up") + "\n";
        let parts = case["messages"][0]["content"].as_array().expect("parts");
        let asked = parts.last().and_then(|part| part["text"].as_str()).expect("text");
        let mut arguments = vec![text(&folder), asked, "--max-new-tokens", "12"];
        if parts.len() > 1 {
            arguments.extend(["--image", text(&wide)]);
        }
        assert_eq!(said(&verb(&arguments, "")), expected);
        arguments[1] = "-";
        assert_eq!(said(&verb(&arguments, &format!("{asked}\n"))), expected);
        arguments.extend(["--temperature", "1", "--seed", "7"]);
        let sampled = said(&verb(&arguments, asked));
        assert_ne!(sampled, expected);
        assert_eq!(said(&verb(&arguments, asked)), sampled);
        let adapter = folder.join("adapter");
        assert_ne!(said(&verb(&[&arguments[..4], &["--adapter", text(&adapter)]].concat(), asked)), expected);
    }
}

#[test]
fn a_checkpoint_without_template_gets_the_text_and_one_with_a_low_limit_says_where_it_stopped() {
    let (_keep, folder) = copy("llava-tiny");
    std::fs::remove_file(folder.join("chat_template.jinja")).expect("the test can set itself up");
    let shape = Shape::read(&folder).expect("the test can set itself up");
    let encoder = train::encoder(&folder, &shape).expect("the test can set itself up");
    let case = &cases(&folder)[1];
    let expected = encoder.tokenizer().decode(&ids(&case["generated_ids"])).expect("the test can set itself up") + "\n";
    let wide = fixture("model/images/wide.png");
    let asked = case["prompt_text"].as_str().expect("text");
    let arguments = [text(&folder), asked, "--image", text(&wide), "--max-new-tokens", "12"];
    assert_eq!(said(&verb(&arguments, "")), expected);
    let refused = refusal(&[&arguments[..], &["--system", "Be brief."]].concat());
    assert!(refused.starts_with("error: `system`: the checkpoint has no chat template"), "{refused}");

    let config = std::fs::read_to_string(folder.join("config.json")).expect("the test can set itself up");
    let limit = ids(&case["prompt_ids"]).len() + 3;
    let config = config.replace("\"max_position_embeddings\": 512", &format!("\"max_position_embeddings\": {limit}"));
    std::fs::write(folder.join("config.json"), config).expect("the test can set itself up");
    let output = verb(&arguments, "");
    assert!(output.status.success());
    let expected =
        encoder.tokenizer().decode(&ids(&case["generated_ids"])[..3]).expect("the test can set itself up") + "\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let note = format!("stopped at the model's limit of {limit} tokens, prompt and images included\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), note);
}

#[test]
fn what_cannot_be_answered_is_refused_in_one_message() {
    let (llava, llama) = (fixture("model/llava-tiny"), fixture("model/llama-tiny"));
    let (llava, llama) = (text(&llava), text(&llama));
    let wide = fixture("model/images/wide.png");
    let broken = fixture("model/llava-tiny/config.json");
    let adapter = fixture("model/llama-tiny/adapter");
    let has = |arguments: &[&str], start: &str, part: &str| {
        let found = refusal(arguments);
        assert!(found.starts_with(start) && found.contains(part), "{found}");
        assert_eq!(found.matches("error:").count(), 1, "{found}");
    };
    has(&["nowhere", "Hi"], "error: `nowhere`: ", "nowhere");
    has(&[llava, "Hi", "--image", "nowhere.png"], "error: nowhere.png: cannot read: ", "check the path");
    has(&[llava, "Hi", "--image", text(&broken)], "error: ", "config.json: expected an image, found");
    has(&[llama, "Hi", "--image", text(&wide)], "error: prompt: the model takes no images", "hint: choose a vision");
    has(&[llava, "<image> Hi"], "error: prompt: ", "image");
    has(&[llava, " "], "error: prompt: the prompt is empty", "");
    has(&[llava, "-"], "error: prompt: the prompt is empty", "");
    has(&[llava, "Hi", "--adapter", text(&adapter)], "error: ", "use the adapter with the model it was trained on");
    has(&[llava, "Hi", "--adapter", "nowhere"], "error: nowhere/adapter_config.json: ", "");
    has(&[llava, "Hi", "--max-new-tokens", "0"], "error: `max_new_tokens`: expected at least 1", "");
    has(&[llava, "Hi", "--top-p", "0.9"], "error: `top_p`: has no effect at temperature 0", "set a temperature");
    let long = "sky ".repeat(600);
    has(
        &[llava, &long],
        "error: prompt: ",
        "the model's limit is 512 tokens (`max_position_embeddings` in config.json)",
    );
}

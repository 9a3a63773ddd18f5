//! Whole benchmarks from files in a temporary folder.

use super::*;
use std::fs;
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }
    folder
}

fn open(benchmark: Benchmark, files: &[(&str, &str)]) -> Result<Loaded> {
    Loaded::open(benchmark, folder(files).path(), &Options::default())
}

fn score(loaded: &Loaded, answers: &[(&str, &str)]) -> Scored {
    let answers = Answers::of("a model", answers.iter().map(|(id, text)| ((*id).to_owned(), (*text).to_owned())));
    let bootstrap = Bootstrap { resamples: 50, seed: 1 };
    loaded.score(&answers, Missing::Refuse, bootstrap).unwrap_or_else(|error| panic!("{error}"))
}

fn figure(scored: &Scored, name: &str) -> f64 {
    let found = scored.figures.figures.iter().find(|figure| figure.name == name);
    let value = found.unwrap_or_else(|| panic!("no figure {name}: {:?}", scored.figures.figures)).value;
    (value.unwrap_or(f64::NAN) * 1e4).round() / 1e4
}

const OBJECTS: &str = r#"{"id": "a", "image": "a.png", "objects": ["dog", "bone"]}
{"id": 2, "image": "b.png", "objects": ["dog", "car", "tree", "bird"], "synonyms": {"dog": ["puppy"]}, "question": "What is here?"}

{"id": "c", "image": "c.png", "objects": []}
"#;

#[test]
fn a_folder_of_objects_is_described_and_polled() {
    let loaded = open(Benchmark::Objects, &[("objects.jsonl", OBJECTS)]).unwrap_or_else(|error| panic!("{error}"));
    let ids: Vec<&str> = loaded.questions().iter().map(|question| question.id.as_str()).collect();
    assert_eq!(ids.len(), 3 + 3 * 4 + 3 * 2, "{ids:?}");
    assert_eq!(loaded.questions()[0].text, objects::QUESTION);
    let second = loaded.questions().iter().find(|question| question.id == "2/describe").expect("a question");
    assert_eq!(second.text, "What is here?");

    let answers: Vec<(&str, &str)> = ids
        .iter()
        .map(|id| match *id {
            // Two true, one invented (twice), so 2 of 3; then 2 of 2; then nothing.
            "a/describe" => (*id, "A puppy, the puppies' bones and two cars. The car is red."),
            "2/describe" => (*id, "Dogs near a tree."),
            "c/describe" => (*id, "Nothing."),
            // Every poll of an object that is there has an odd number.
            poll => (*id, if poll.ends_with(['1', '3', '5']) { "Yes." } else { "No." }),
        })
        .collect();
    let scored = score(&loaded, &answers);
    assert_eq!(figure(&scored, "CHAIRs"), 33.3333);
    assert_eq!(figure(&scored, "CHAIRs_refine"), 50.0);
    assert_eq!(figure(&scored, "CHAIRi"), 20.0);
    assert_eq!(figure(&scored, "Cover"), 66.6667);
    assert_eq!(figure(&scored, "Hal"), 33.3333);
    assert_eq!(figure(&scored, "POPE/accuracy"), 100.0);
    assert_eq!(figure(&scored, "POPE/adversarial/yes_share"), 50.0);
    let row = &scored.rows[0];
    assert_eq!(row.mentioned.as_deref(), Some(&["puppy".to_owned(), "bone".to_owned(), "car".to_owned()][..]));
    assert_eq!(row.hallucinated.as_deref(), Some(&["car".to_owned()][..]));
    assert_eq!(row.covered.as_deref(), Some(&["dog".to_owned(), "bone".to_owned()][..]));
}

#[test]
fn a_row_without_an_id_is_called_by_its_line() {
    let rows = "{\"image\": \"a.png\", \"objects\": [\"dog\"]}\n\n{\"image\": \"b.png\", \"objects\": [\"cat\"]}\n";
    let loaded = open(Benchmark::Objects, &[("objects.jsonl", rows)]).unwrap_or_else(|error| panic!("{error}"));
    let described = loaded.questions().iter().filter(|question| question.id.ends_with("/describe"));
    assert_eq!(described.map(|question| question.id.as_str()).collect::<Vec<_>>(), ["1/describe", "3/describe"]);
}

#[test]
fn an_evaluation_folder_has_figures_and_rows() {
    let loaded = open(Benchmark::Objects, &[("objects.jsonl", OBJECTS)]).unwrap_or_else(|error| panic!("{error}"));
    let answers: Vec<(&str, &str)> = loaded.questions().iter().map(|question| (question.id.as_str(), "no")).collect();
    let scored = score(&loaded, &answers);
    let output = tempfile::tempdir().expect("a folder");
    let output = output.path().join("new/evaluation");
    scored.write(&output).unwrap_or_else(|error| panic!("{error}"));
    let figures: Figures = files::json(&output.join("metrics.json")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(figures, scored.figures);
    let rows: Vec<(usize, Row)> = files::rows(&output.join("rows.jsonl")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), scored.rows);
    assert_eq!(fs::read_dir(&output).expect("a folder").count(), 2);
}

/// The vocabulary and lists behind the worked example: two answers with 6 and 4 nouns, of which 1 and 0 are flagged, 4 of 7 and 3 of 6
/// objects covered, 1 of 5 and 0 of 4 tempting ones named.
const AMBER: [(&str, &str); 4] = [
    (
        "query/query_generative.json",
        r#"[{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
            {"id": 2, "image": "AMBER_2.jpg", "query": "Describe this image."}]"#,
    ),
    (
        "annotations.json",
        r#"[{"id": 1, "type": "generative", "truth": ["sky", "forest", "grass", "person", "lake", "mountain", "road"],
             "hallu": ["cloud", "sun", "bird", "dog", "flower"]},
            {"id": 2, "type": "generative", "truth": ["cat", "sofa", "table", "cup", "book", "window"],
             "hallu": ["lamp", "mouse", "ball", "rug"]}]"#,
    ),
    (
        "relation.json",
        r#"{"sky": [], "forest": ["tree"], "grass": ["ground"], "person": ["man"], "lake": [], "mountain": [], "road": [],
            "cloud": [], "sun": [], "bird": [], "dog": [], "flower": [], "cat": [], "sofa": ["couch"], "table": [], "cup": [],
            "book": [], "window": [], "lamp": [], "mouse": [], "ball": [], "rug": [], "orange": []}"#,
    ),
    ("safe_words.txt", "orange\nlight"),
];

#[test]
fn the_worked_example_of_amber() {
    let loaded = open(Benchmark::AmberGenerative, &AMBER).unwrap_or_else(|error| panic!("{error}"));
    let answers = [
        ("1", "The sky over trees, a man, the grass and an orange beside a dog."),
        ("2", "A cat on a couch. The cat has a cup."),
    ];
    let scored = score(&loaded, &answers);
    let rounded = |name: &str| (figure(&scored, name) * 10.0).round() / 10.0;
    assert_eq!(["CHAIR", "Cover", "Hal", "Cog"].map(rounded), [10.0, 53.8, 50.0, 11.1]);
    assert_eq!(scored.rows[0].hallucinated.as_deref(), Some(&["dog".to_owned()][..]));
    assert_eq!(scored.rows[0].covered.as_deref().map(<[String]>::len), Some(4));
}

#[test]
fn words_of_amber_that_are_similar_are_the_same() {
    let with = [&AMBER[..], &[("similar_words.txt", "dog cat\n")]].concat();
    let loaded = open(Benchmark::AmberGenerative, &with).unwrap_or_else(|error| panic!("{error}"));
    let scored = score(&loaded, &[("1", "a cat"), ("2", "dogs")]);
    // The cat of the first image tempts as a dog does and is flagged; the dogs of the second are its cat.
    assert_eq!(figure(&scored, "CHAIR"), 50.0);
    assert_eq!(figure(&scored, "Cog"), 11.1111);
    assert_eq!(figure(&scored, "Cover"), 7.6923);
}

#[test]
fn ambers_questions_are_counted_by_what_they_are_about() {
    let files = [
        (
            "query_discriminative-existence.json",
            r#"[{"id": 1, "image": "a.jpg", "query": "Is there a sun?"}, {"id": 2, "image": "a.jpg", "query": "Is there a dog?"}]"#,
        ),
        ("query_discriminative-attribute.json", r#"[{"id": 3, "image": "a.jpg", "query": "Is the sky red?"}]"#),
        ("query_discriminative-relation.json", r#"[{"id": 4, "image": "a.jpg", "query": "Is it on it?"}]"#),
        (
            "annotations.json",
            r#"[{"id": 1, "type": "discriminative-hallucination", "truth": "no"},
                {"id": 2, "type": "discriminative-hallucination", "truth": "yes"},
                {"id": 3, "type": "discriminative-attribute-state", "truth": "no"},
                {"id": 4, "type": "relation", "truth": "no"}]"#,
        ),
    ];
    let loaded = open(Benchmark::AmberDiscriminative, &files).unwrap_or_else(|error| panic!("{error}"));
    let scored = score(&loaded, &[("1", "No"), ("2", "no, it is not."), ("3", "Maybe"), ("4", "Yes")]);
    assert_eq!(figure(&scored, "accuracy"), 25.0);
    assert_eq!(figure(&scored, "precision"), 50.0);
    assert_eq!(figure(&scored, "recall"), 33.3333);
    assert_eq!(figure(&scored, "F1"), 40.0);
    assert_eq!(figure(&scored, "existence/recall"), 100.0);
    assert_eq!(figure(&scored, "attribute/accuracy"), 0.0);
    assert!(figure(&scored, "relation/precision").is_nan());
    assert!(!scored.figures.figures.iter().any(|figure| figure.name.starts_with("number/")));
}

fn coco(objects: &[&[&str]]) -> [(&'static str, String); 2] {
    let categories = ["person", "dog", "cat", "car", "bus", "chair", "toilet"];
    let id = |name: &str| categories.iter().position(|category| *category == name).expect("a category");
    let images = (1..=objects.len()).map(|id| serde_json::json!({"id": id, "file_name": format!("{id}.jpg")}));
    let annotations = objects.iter().zip(1..).flat_map(|(names, image)| names.iter().map(move |name| (image, *name)));
    let annotations = annotations.map(|(image, name)| serde_json::json!({"image_id": image, "category_id": id(name)}));
    let categories = categories.iter().map(|name| serde_json::json!({"id": id(name), "name": name}));
    let instances = serde_json::json!({
        "images": images.collect::<Vec<_>>(), "annotations": annotations.collect::<Vec<_>>(), "categories": categories.collect::<Vec<_>>(),
    });
    let captions = serde_json::json!({"annotations": [{"image_id": 1, "caption": "Two buses and a toilet seat."}]});
    [
        ("annotations/instances_val2014.json", instances.to_string()),
        ("annotations/captions_val2014.json", captions.to_string()),
    ]
}

/// Mentions (5, 3, 0, 4), invented (1, 0, 0, 2): CHAIRs 50, refined 66.67, CHAIRi 25.
#[test]
fn the_worked_example_of_object_halbench() {
    let files = coco(&[&["person", "dog"], &["dog", "cat", "car"], &["cat"], &["person", "dog"]]);
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let loaded = open(Benchmark::Chair, &files).unwrap_or_else(|error| panic!("{error}"));
    let answers = [
        ("1", "A man, a dog, a bus and a toilet, and a cat."),
        ("2", "Dogs, cats, cars, more dogs."),
        ("3", "The weather is fine."),
        ("4", "A woman and her puppy, a car and a bus. The car is red."),
    ];
    let scored = score(&loaded, &answers);
    assert_eq!(figure(&scored, "CHAIRs"), 50.0);
    assert_eq!(figure(&scored, "CHAIRs_refine"), 66.6667);
    assert_eq!(figure(&scored, "CHAIRi"), 25.0);
    assert_eq!(figure(&scored, "CHAIRi_mentions"), 28.5714);
    // 4 of 4, 3 of 3, 0 of 1 and 2 of 2 classes, two of the first from its caption.
    assert_eq!(figure(&scored, "recall"), 90.0);
}

#[test]
fn young_animals_are_no_people_and_a_toilet_has_no_chair() {
    let files = coco(&[&["dog"], &["dog"]]);
    let mut files = files.each_ref().map(|(name, text)| (*name, text.as_str())).to_vec();
    let loaded = open(Benchmark::Chair, &files).unwrap_or_else(|error| panic!("{error}"));
    let answer = "A baby dog by the home plate, the seat of the toilet, a hot dog, a trash can and train tracks.";
    let scored = score(&loaded, &[("1", answer), ("2", "hair driers")]);
    let mentioned = scored.rows[0].mentioned.clone().unwrap_or_default();
    assert_eq!(mentioned, ["dog", "toilet", "hot dog"]);
    // Another table of synonyms is taken from the folder.
    files.push(("synonyms.txt", "person\ndog, puppy\ncat\ncar\nbus\nchair\ntoilet, trash can\n"));
    let loaded = open(Benchmark::Chair, &files).unwrap_or_else(|error| panic!("{error}"));
    let scored = score(&loaded, &[("1", answer), ("2", "hair driers")]);
    assert_eq!(scored.rows[0].mentioned.clone().unwrap_or_default(), ["dog", "toilet", "trash can"]);
}

const POPE: [(&str, &str); 2] = [
    (
        "coco_pope_random.json",
        r#"{"question_id": 1, "image": "x.jpg", "text": "Is there a dog in the image?", "label": "yes"}
{"question_id": 2, "image": "x.jpg", "text": "Is there a cat in the image?", "label": "no"}
{"question_id": 3, "image": "y.jpg", "text": "Is there a cat in the image?", "label": "no"}"#,
    ),
    (
        "coco_pope_popular.json",
        r#"{"question_id": 1, "image": "x.jpg", "text": "Is there a dog in the image?", "label": "yes"}"#,
    ),
];

#[test]
fn pope_counts_each_setting_and_all() {
    let loaded = open(Benchmark::Pope, &POPE).unwrap_or_else(|error| panic!("{error}"));
    let scored = score(&loaded, &[("random/1", "Yes"), ("random/2", "It is"), ("random/3", "No"), ("popular/1", "no")]);
    assert_eq!(figure(&scored, "random/accuracy"), 66.6667);
    assert_eq!(figure(&scored, "random/precision"), 50.0);
    assert_eq!(figure(&scored, "random/recall"), 100.0);
    assert_eq!(figure(&scored, "random/F1"), 66.6667);
    assert_eq!(figure(&scored, "random/yes_share"), 66.6667);
    assert_eq!(figure(&scored, "popular/accuracy"), 0.0);
    assert_eq!(figure(&scored, "accuracy"), 50.0);
}

#[test]
fn a_limit_draws_images_and_keeps_all_questions_about_them() {
    let files = folder(&POPE);
    let of = |seed| {
        let options = Options { limit: Some(1), seed, ..Options::default() };
        let loaded = Loaded::open(Benchmark::Pope, files.path(), &options).unwrap_or_else(|error| panic!("{error}"));
        loaded.questions().iter().map(|question| question.id.clone()).collect::<Vec<_>>()
    };
    let drawn: HashSet<Vec<String>> = (0..20).map(of).collect();
    let x = vec!["random/1".to_owned(), "random/2".to_owned(), "popular/1".to_owned()];
    assert_eq!(drawn, HashSet::from([x, vec!["random/3".to_owned()]]));
    // Answers to the questions that were not drawn are no mistake.
    let options = Options { limit: Some(1), seed: 0, ..Options::default() };
    let loaded = Loaded::open(Benchmark::Pope, files.path(), &options).unwrap_or_else(|error| panic!("{error}"));
    let all = ["random/1", "random/2", "random/3", "popular/1"].map(|id| (id, "Yes"));
    assert_eq!(score(&loaded, &all).figures.answers, loaded.questions().len());
}

/// What goes wrong, each with the one message that a user sees.
#[test]
fn what_is_wrong_is_told_with_file_and_row() {
    let told = |benchmark, files: &[(&str, &str)]| {
        let folder = folder(files);
        let error = Loaded::open(benchmark, folder.path(), &Options::default()).expect_err("refused");
        error.to_string().replace(&folder.path().display().to_string(), "DATA")
    };
    let twice = r#"{"id": "a", "image": "a.png", "objects": []}
{"id": "a", "image": "b.png", "objects": [" "]}"#;
    let broken = "{\"id\": \"a\", \"image\": \"a.png\", \"objects\": []}\n{\"id\": \"b\", \"image\": }\n";
    let unknown = r#"{"image": "a.png", "objects": [], "synonym": {}}
{"image": "a.png", "objects": ["dog"], "id": "3", "source": "mine"}
{"image": "a.png", "object": ["dog"]}
{"image": "a.png", "objects": "dog"}"#;
    let clash = "{\"id\": 2, \"image\": \"a.png\", \"objects\": []}\n{\"image\": \"b.png\", \"objects\": []}\n";
    let maybe = r#"{"question_id": 1, "image": "x.jpg", "text": "?", "label": "maybe"}"#;
    let two = [("coco_pope_random.json", maybe), ("gqa_pope_seem_random.json", maybe)];
    let mut amber = AMBER;
    amber[1].1 = r#"[{"id": 1, "type": "generative", "truth": [], "hallu": []}]"#;
    let (instances, captions) =
        (r#"{"images": [], "annotations": [{"image_id": 1, "category_id": 9}], "categories": []}"#, "{}");
    let unicorn = r#"{"images": [], "annotations": [], "categories": [{"id": 1, "name": "unicorn"}]}"#;
    let messages = [
        told(Benchmark::Objects, &[]),
        told(Benchmark::Objects, &[("objects.jsonl", twice)]),
        told(Benchmark::Objects, &[("objects.jsonl", broken)]),
        told(Benchmark::Objects, &[("objects.jsonl", "\n")]),
        told(Benchmark::Objects, &[("objects.jsonl", unknown)]),
        told(Benchmark::Objects, &[("objects.jsonl", clash)]),
        told(Benchmark::Pope, &[("pope.json", "")]),
        told(Benchmark::Pope, &two),
        told(Benchmark::Pope, &two[..1]),
        told(Benchmark::AmberGenerative, &AMBER[1..]),
        told(Benchmark::AmberGenerative, &AMBER[..3]),
        told(Benchmark::AmberGenerative, &amber),
        told(Benchmark::AmberDiscriminative, &AMBER),
        told(Benchmark::Chair, &[("instances_x.json", instances)]),
        told(Benchmark::Chair, &[("instances_x.json", instances), ("captions_x.json", captions)]),
        told(Benchmark::Chair, &[("instances_x.json", unicorn), ("captions_x.json", captions)]),
        told(Benchmark::Chair, &[("instances_x.json", "{\"images\": ["), ("captions_x.json", captions)]),
    ];
    insta::assert_snapshot!(messages.join("\n\n"));
}

#[test]
fn answers_that_do_not_fit_are_told() {
    let data = folder(&POPE);
    let loaded =
        Loaded::open(Benchmark::Pope, data.path(), &Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let told = |text: &str, missing| {
        let folder = folder(&[("answers.jsonl", text)]);
        let answers = loaded.read_answers(&folder.path().join("answers.jsonl"));
        let scored = answers.and_then(|answers| loaded.score(&answers, missing, Bootstrap { resamples: 10, seed: 1 }));
        match scored {
            Ok(scored) => format!("{} answers scored", scored.figures.answers),
            Err(error) => error.to_string().replace(&folder.path().display().to_string(), "DATA"),
        }
    };
    let one = r#"{"id": "random/1", "answer": "Yes", "tokens": 3}"#;
    let messages = [
        told(one, Missing::Refuse),
        told(one, Missing::LeaveOut),
        told(r#"[{"question_id": "random/1", "response": "Yes"}]"#, Missing::LeaveOut),
        told(&format!("{one}\n{one}"), Missing::LeaveOut),
        told(&format!("{one}\n{{\"id\": 7, \"answer\": \"Yes\"}}"), Missing::LeaveOut),
        told(r#"[{"id": "random/1"}]"#, Missing::LeaveOut),
        told("{\"id\": \"random/1\"}\nrubbish", Missing::LeaveOut),
        told("", Missing::LeaveOut),
    ];
    insta::assert_snapshot!(messages.join("\n\n"));
}

/// What a file, or a folder of files, answers: setting, number and answer.
fn pope_answers(files: &[(&str, &str)], given: &str) -> String {
    let data = folder(&POPE);
    let loaded =
        Loaded::open(Benchmark::Pope, data.path(), &Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let folder = folder(files);
    match loaded.read_answers(&folder.path().join(given)) {
        Ok(answers) => {
            answers.iter().map(|(id, answer)| format!("{id}={answer} ")).collect::<String>().trim().to_owned()
        }
        Err(error) => error.to_string().replace(&folder.path().display().to_string(), "DATA"),
    }
}

#[test]
fn answers_in_the_form_of_popes_authors_find_their_questions() {
    let random = r#"{"question": "Is there a dog in the image?", "answer": "yes"}
{"question": "Is there a cat in the image?", "answer": "no"}
{"question": "Is there a cat in the image?", "answer": "No."}"#;
    let popular = r#"{"question_id": 1, "prompt": "Is there a dog in the image?\nAnswer in one word.", "text": "no"}"#;
    let files = [("out/first.json", random), ("out/second.jsonl", popular)];
    let all = "random/1=yes random/2=no random/3=No. popular/1=no";
    assert_eq!(pope_answers(&files, "out"), all);
    assert_eq!(pope_answers(&files, "out/first.json"), "random/1=yes random/2=no random/3=No.");
    // By the numbers of the authors' file, in any order, where the file's name says which.
    let numbered = r#"{"question_id": 3, "text": "No."}
{"question_id": 1, "text": "yes"}"#;
    assert_eq!(pope_answers(&[("llava_Random.jsonl", numbered)], "llava_Random.jsonl"), "random/3=No. random/1=yes");
    // By image and question: what two settings ask alike is answered once, or alike.
    let row = |image: &str, object: &str, answer: &str| {
        serde_json::json!({"image": format!("/far/{image}.jpg"), "question": format!("Is there a {object} in the image?"), "answer": answer})
            .to_string()
    };
    let rows = [row("y", "cat", "No."), row("x", "cat", "no"), row("x", "dog", "no"), row("x", "dog", "no")].join("\n");
    assert_eq!(pope_answers(&[("a.jsonl", &rows)], "a.jsonl"), "random/1=no random/2=no random/3=No. popular/1=no");
    let one = [row("x", "dog", "yes"), row("x", "cat", "no")].join("\n");
    assert_eq!(pope_answers(&[("a.jsonl", &one)], "a.jsonl"), "popular/1=yes", "half of a setting is left alone");
    // The ids of mdpo as ever.
    assert_eq!(pope_answers(&[("a.jsonl", r#"{"id": "random/2", "answer": "a"}"#)], "a.jsonl"), "random/2=a");
}

#[test]
fn answers_whose_questions_cannot_be_told_are_refused_with_what_would_fit() {
    let told = |name: &str, text: &str| pope_answers(&[(name, text)], name);
    let messages = [
        told("a.jsonl", r#"{"question_id": 1, "text": "yes"}"#),
        told("a.jsonl", r#"{"question": "Is there a cow in the image?", "answer": "yes"}"#),
        told("a.jsonl", r#"{"answer": "yes"}"#),
        told("a_random.jsonl", r#"{"question_id": 9, "text": "yes"}"#),
        told("a_random.jsonl", r#"{"question_id": 1, "question": "Is there a cow in the image?", "answer": "yes"}"#),
        told(
            "a.jsonl",
            r#"{"image": "x.jpg", "question": "Is there a dog in the image?", "answer": "yes"}
{"image": "x.jpg", "question": "Is there a dog in the image?", "answer": "no"}
{"image": "y.jpg", "question": "Is there a dog in the image?", "answer": "no"}"#,
        ),
    ];
    insta::assert_snapshot!(messages.join("\n\n"));
}

#[test]
fn missing_images_are_counted() {
    let data = folder(&[&POPE[..], &[("images/y.jpg", "")]].concat());
    let loaded =
        Loaded::open(Benchmark::Pope, data.path(), &Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let error = loaded.check_images().expect_err("an image is missing").to_string();
    assert!(error.contains("x.jpg: not found; 1 of 2 images are missing"), "{error}");
    fs::write(data.path().join("x.jpg"), "").expect("written");
    loaded.check_images().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn names_are_those_of_the_command_line() {
    for benchmark in Benchmark::ALL {
        assert_eq!(Benchmark::of_name(benchmark.name()).ok(), Some(benchmark));
    }
    let told = |name| Benchmark::of_name(name).expect_err("no such benchmark").to_string();
    assert_eq!(told("popes"), "benchmark: `popes` is no benchmark\n  hint: did you mean `pope`?");
    assert!(told("mine").starts_with("benchmark: `mine` is no benchmark\n  hint: choose one of `amber-generative`"));
}

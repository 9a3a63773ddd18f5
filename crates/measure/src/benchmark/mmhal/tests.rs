use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn entry(kind: &str, image: &str) -> Value {
    json!({
        "question_type": kind, "question_topic": "animal", "image_id": format!("id-{image}"),
        "image_src": format!("https://photos.example/12/{image}.jpg"), "image_content": ["Cat", "Sofa"],
        "question": "What lies on the sofa?", "gt_answer": "A cat & a <cushion>.", "model_answer": "",
    })
}

fn folder(entries: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), entries.to_string()).unwrap();
    folder
}

fn figure<'a>(figures: &'a Figures, name: &str) -> &'a crate::Figure {
    figures.figures.iter().find(|figure| figure.name == name).unwrap_or_else(|| panic!("no figure `{name}`"))
}

#[test]
fn a_grade_is_named_once_or_counts_as_none() {
    for (verdict, expected) in [
        ("It fits.\nRating: 5", Some(5)),
        ("RATING: 0", Some(0)),
        ("Rating: 4, somewhat informative. So: rating: 4", Some(4)),
        ("Rating: 3 or rating: 4", None),
        ("Rating 5", None),
        ("**Rating:** 5", None),
        ("Rating:5", None),
        ("Rating: 7", None),
        // As the authors' search for text has it.
        ("Rating: 62", Some(6)),
        ("", None),
    ] {
        assert_eq!(grade(verdict), expected, "{verdict}");
    }
}

/// The grades and figures of the example that the authors' script was run on: mean 3.0, three of eight below 3.
#[test]
fn figures_are_those_of_the_authors_script() {
    let graded = [6, 2, 0, 3, 5, 1, 4, 3].map(|grade| ("", grade));
    let figures = figures(&graded, "model", Bootstrap::default());
    assert_eq!(figures.answers, 8);
    let score = figure(&figures, "score");
    assert_eq!((score.value, score.better), (Some(3.0), Better::Higher));
    assert!(score.low < Some(3.0) && score.high > Some(3.0) && score.low >= Some(0.0) && score.high <= Some(6.0));
    let rate = figure(&figures, "hallucination rate");
    assert_eq!((rate.value, rate.better), (Some(37.5), Better::Lower));
    // (3 + 2 + 0 + 0 + 2 + 1 + 1 + 0) / 8 / 3.
    assert!((figure(&figures, "informativeness").value.unwrap() - 37.5).abs() < 1e-9);
}

#[test]
fn types_have_figures_of_their_own_in_the_order_of_the_file() {
    let graded = [("counting", 6), ("adversarial", 0), ("counting", 2), ("adversarial", 1)];
    let figures = figures(&graded, "model", Bootstrap::default());
    let names: Vec<&str> = figures.figures.iter().map(|figure| figure.name.as_str()).collect();
    let expected = [
        "score",
        "hallucination rate",
        "informativeness",
        "score counting",
        "score adversarial",
        "hallucination rate counting",
        "hallucination rate adversarial",
    ];
    assert_eq!(names, expected);
    assert_eq!(figure(&figures, "score counting").value, Some(4.0));
    assert_eq!(figure(&figures, "score adversarial").value, Some(0.5));
    assert_eq!(figure(&figures, "hallucination rate counting").value, Some(50.0));
    assert_eq!(figure(&figures, "hallucination rate adversarial").value, Some(100.0));
}

#[test]
fn questions_and_photographs_are_found() {
    let mut entries =
        json!([entry("attribute", "a"), entry("adversarial", "b"), entry("counting", "c"), entry("other", "d")]);
    entries[3]["model_answer"] = json!("A cat.");
    let folder = folder(&entries);
    fs::create_dir(folder.path().join("images")).unwrap();
    for name in ["images/a.jpg", "b.jpg", "images/id-c.jpg"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let items = read(folder.path()).unwrap();
    let images: Vec<&Path> = items.iter().map(|item| item.image.strip_prefix(folder.path()).unwrap()).collect();
    assert_eq!(images, ["images/a.jpg", "b.jpg", "images/id-c.jpg", "images/d.jpg"].map(Path::new));
    let ids: Vec<(&str, &str)> = items.iter().map(|item| (item.id.as_str(), item.kind.as_str())).collect();
    assert_eq!(ids, [("0", "attribute"), ("1", "adversarial"), ("2", "counting"), ("3", "other")]);
    assert_eq!((items[0].model_answer.as_deref(), items[3].model_answer.as_deref()), (None, Some("A cat.")));
}

#[test]
fn every_bad_entry_is_told() {
    let mut entries = json!([entry("attribute", "a"), entry("other", "b"), entry("other", "c")]);
    entries[0].as_object_mut().unwrap().remove("gt_answer");
    entries[2]["image_content"] = json!("Cat");
    let text = read(folder(&entries).path()).unwrap_err().to_string();
    assert!(text.contains("response_template.json entry 1: missing field `gt_answer`"), "{text}");
    assert!(text.contains("entry 3: invalid type: string \"Cat\""), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let text = read(empty.path()).unwrap_err().to_string();
    assert!(text.contains("expected the file `response_template.json`") && text.contains("hint: "), "{text}");
    assert!(read(folder(&json!([])).path()).unwrap_err().to_string().contains("has no questions"));
}

#[test]
fn answers_meet_their_questions_or_are_told() {
    let folder = folder(&json!([entry("attribute", "a"), entry("other", "b")]));
    let items = read(folder.path()).unwrap();
    let matched = match_answers(&items, [("1", "one"), ("0", "nought")], "answers.jsonl").unwrap();
    assert_eq!(matched.iter().map(|answered| answered.answer).collect::<Vec<_>>(), ["nought", "one"]);
    let problem = match_answers(&items, [("1", "a"), ("1", "b"), ("7", "c")], "answers.jsonl").unwrap_err().to_string();
    for part in [
        "answers.jsonl: `1` has two answers",
        "has no question `7`",
        "1 of 2 questions have no answer, the first is `0`",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn a_limit_draws_questions_by_the_seed_and_they_keep_their_ids() {
    let entries: Vec<Value> = (0..12).map(|index| entry("other", &index.to_string())).collect();
    let folder = folder(&json!(entries));
    let ids = |limit, seed| {
        let (asked, others) = draw(read(folder.path()).unwrap(), limit, seed);
        assert_eq!(asked.len() + others.len(), 12);
        asked.into_iter().map(|item| item.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, 1).len(), 12);
    assert_eq!(ids(Some(40), 1).len(), 12);
    let drawn = ids(Some(5), 1);
    assert_eq!((drawn.len(), &drawn), (5, &ids(Some(5), 1)));
    assert!(
        drawn.is_sorted_by_key(|id| id.parse::<usize>().unwrap()) && drawn != ["0", "1", "2", "3", "4"],
        "{drawn:?}"
    );
    assert_ne!(drawn, ids(Some(5), 2));
}

#[test]
fn a_prompt_holds_everything_as_it_is() {
    let folder = folder(&json!([entry("attribute", "a")]));
    let items = read(folder.path()).unwrap();
    let answered = Answered { item: &items[0], answer: "A {{ dog }} & \"one\" <b>." };
    let filled = Prompt::own().fill(&answered).unwrap();
    for part in ["Cat, Sofa", "What lies on the sofa?", "A cat & a <cushion>.", "A {{ dog }} & \"one\" <b>."] {
        assert!(filled.contains(part), "{part}: {filled}");
    }
    // An answer that quotes the instruction is graded as nothing by the instruction itself.
    assert_eq!(grade(&filled), None);
    let path = folder.path().join("prompt.html");
    fs::write(&path, "{{ question_type }} {{ question_topic }} {{ answer }}").unwrap();
    assert_eq!(Prompt::read(&path).unwrap().fill(&answered).unwrap(), "attribute animal A {{ dog }} & \"one\" <b>.");
}

#[test]
fn a_bad_prompt_is_told_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let problem = |text: &str| {
        let path = folder.path().join("prompt.txt");
        fs::write(&path, text).unwrap();
        Prompt::read(&path).unwrap_err().to_string()
    };
    assert!(problem("Rate this: {}").contains("the judge would not see the answer"));
    assert!(problem("{{ answer }} {{ reference }}").contains("there is no variable `reference`"));
    assert!(problem("one\n{{ answer").contains("prompt.txt: line 2: "));
}

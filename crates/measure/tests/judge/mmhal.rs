//! MMHal-Bench from the authors' layout of files to figures, with a judge on loopback.

use std::fs;

use mdpo_measure::benchmark::mmhal::{self, Answered, Item, Options, Sight, Ungraded};
use serde_json::json;
use tempfile::{TempDir, tempdir};

use crate::{
    at_once, cached, open,
    server::{Act, Asked, Server},
    settings,
};

fn questions(count: usize) -> (TempDir, Vec<Item>) {
    let folder = tempdir().unwrap();
    let entry = |index: usize| {
        json!({
            "question_type": (["attribute", "counting"][index % 2]), "question_topic": "food", "image_id": format!("{index}"),
            "image_src": format!("https://photos.example/{index}.png"), "image_content": ["Bread", "Table"],
            "question": format!("What is number {index}?"), "gt_answer": "Bread.",
        })
    };
    let entries: Vec<_> = (0..count).map(entry).collect();
    fs::write(folder.path().join("response_template.json"), json!(entries).to_string()).unwrap();
    let items = mmhal::read(folder.path()).unwrap();
    (folder, items)
}

fn answered(items: &[Item]) -> Vec<Answered<'_>> {
    items.iter().map(|item| Answered { item, answer: "It is bread." }).collect()
}

/// The grades of the authors' example, by the number in the question.
fn grades(asked: &Asked) -> Option<Act> {
    let number = asked.text().split("What is number ").nth(1)?.split('?').next()?.parse::<usize>().ok()?;
    let verdict =
        ["Rating: 6", "Rating: 2", "It is wrong.", "RATING: 3", "Rating: 5", "Rating: 1", "Rating: 4", "Rating: 3"]
            [number];
    Some(Act::Completion(verdict, "stop"))
}

#[test]
fn grades_of_a_judge_become_figures_and_rows() {
    let (folder, items) = questions(8);
    let (server, cache) = (Server::scripted(grades), tempdir().unwrap());
    image::RgbImage::new(1, 1).save(folder.path().join("0.png")).unwrap();
    let items = match mmhal::read(folder.path()) {
        Ok(found) if found.len() == items.len() => found,
        other => panic!("{other:?}"),
    };
    let judge = open(cached(server.url(), cache.path()));
    let scored = mmhal::score(&answered(&items), "llava", &judge, &Options::default()).unwrap();
    let values: Vec<(&str, Option<f64>)> =
        scored.figures.figures.iter().map(|figure| (figure.name.as_str(), figure.value)).collect();
    assert_eq!(values[..2], [("score", Some(3.0)), ("hallucination rate", Some(37.5))]);
    assert_eq!(values[3..5], [("score attribute", Some(3.75)), ("score counting", Some(2.25))]);
    assert_eq!(
        (scored.figures.benchmark.as_str(), scored.figures.model.as_str(), scored.figures.answers),
        ("mmhal", "llava", 8)
    );
    assert_eq!(scored.ungraded, [("2".to_owned(), Ungraded::Unclear)]);
    assert!(scored.failed.is_empty());
    let row = serde_json::to_value(&scored.rows[0]).unwrap();
    let image = folder.path().canonicalize().unwrap().join("0.png");
    assert_eq!(
        row,
        json!({
            "id": "0", "image": image, "question": "What is number 0?", "answer": "It is bread.", "type": "attribute", "verdict": "Rating: 6", "score": 6.0,
        })
    );

    // Again, from the cache alone: the same figures, intervals included.
    let again = mmhal::score(&answered(&items), "llava", &judge, &Options::default()).unwrap();
    assert_eq!((again.figures, server.asked().len()), (scored.figures, 8));
}

#[test]
fn the_picture_is_shown_when_it_is_asked_for() {
    let (folder, _) = questions(1);
    image::RgbImage::new(1, 1).save(folder.path().join("0.png")).unwrap();
    let items = mmhal::read(folder.path()).unwrap();
    let server = Server::scripted(|_| Some(Act::Completion("Rating: 4", "stop")));
    let judge = open(settings(server.url()));
    let options = Options { sight: Sight::Picture, ..Options::default() };
    mmhal::score(&answered(&items), "llava", &judge, &options).unwrap();
    mmhal::score(&answered(&items), "llava", &judge, &Options::default()).unwrap();
    let asked = server.asked();
    let content = &asked[0].body["messages"][0]["content"];
    assert!(content[0]["image_url"]["url"].as_str().unwrap().starts_with("data:image/png;base64,"));
    assert!(asked[1].body["messages"][0]["content"].is_string());
}

#[test]
fn answers_without_a_verdict_are_in_no_figure_and_cut_verdicts_are_told() {
    let (_folder, items) = questions(3);
    let server = Server::scripted(|asked| match asked.text() {
        text if text.contains("number 0") => Some(Act::Say("500 Internal Server Error", "", String::new())),
        text if text.contains("number 1") => Some(Act::Completion("It is", "length")),
        _ => Some(Act::Completion("Rating: 6", "stop")),
    });
    let judge = open(at_once(1, mdpo_measure::judge::JudgeSettings { retries: 0, ..settings(server.url()) }));
    let scored = mmhal::score(&answered(&items), "llava", &judge, &Options::default()).unwrap();
    assert_eq!(scored.failed.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["0"]);
    assert_eq!(scored.ungraded, [("1".to_owned(), Ungraded::Cut)]);
    assert_eq!((scored.figures.answers, scored.figures.figures[0].value), (2, Some(3.0)));
}

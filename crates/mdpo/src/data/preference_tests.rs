//! Rows of several answers, scores, labels, rewards and trajectories, and the examples that they become.

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::tests::{
    KTO, ODPO, PAIR, SFT, answer, examples, folder, message, parse, parse_with, plain, said, settings, write,
};
use super::*;
use crate::config::{PairsFromScores, ScoreTies, TrainImages};

/// Names of the answers, and the pairs as indices of chosen and rejected.
type Outline<'a> = (Vec<&'a str>, Vec<(Option<usize>, Option<usize>)>);

fn outline(example: &Example) -> Outline<'_> {
    let names = example.answers.iter().map(|answer| answer.name.as_ref()).collect();
    (names, example.pairs.iter().map(|pair| (pair.chosen, pair.rejected)).collect())
}

fn responses(example: &Example) -> Vec<Response> {
    example.answers.iter().map(|answer| answer.response.clone()).collect()
}

fn refused(row: &Json, need: &Need) -> String {
    parse(&folder(), row, need).unwrap_err()
}

fn with(mut row: Json, fields: Json) -> Json {
    row.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    row
}

/// What is left out of a file with these rows, and how many examples it gives.
fn left_out(rows: &[Json], need: &Need, change: impl Fn(&mut config::Data)) -> Result<(usize, LeftOut)> {
    let folder = folder();
    let rows: Vec<String> = rows.iter().map(Json::to_string).collect();
    let mut settings = settings(write(&folder, "rows.jsonl", rows.join("\n")));
    change(&mut settings);
    let dataset = load(&settings, need, 7)?;
    assert!(dataset.problems.is_empty(), "{:?}", dataset.problems);
    assert_eq!(dataset.rows(), rows.len());
    Ok((dataset.examples.len(), dataset.left_out))
}

#[test]
fn several_rejected_answers_share_one_prompt() {
    let folder = folder();
    let rows = [
        json!({"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}),
        json!({"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": ["b", [{"role": "assistant", "content": "c"}]]}),
        json!({"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
                [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}]]}),
    ];
    for (row, said) in rows.iter().zip([plain, answer, answer]) {
        let example = parse(&folder, row, &PAIR).unwrap();
        let pairs = vec![(Some(0), Some(1)), (Some(0), Some(2))];
        assert_eq!(outline(&example), (vec!["chosen", "rejected[0]", "rejected[1]"], pairs));
        assert_eq!(responses(&example), [said("a"), said("b"), said("c")]);
    }
    // A list of messages is one answer.
    let turns = json!([{"role": "assistant", "content": "b"}, {"role": "user", "content": "?"}, {"role": "assistant", "content": "c"}]);
    let one =
        parse(&folder, &json!({"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": turns}), &PAIR);
    assert_eq!(outline(&one.unwrap()), (vec!["chosen", "rejected"], vec![(Some(0), Some(1))]));
    for (rejected, expected) in [
        (json!(["b", "b"]), "`rejected[0]` and `rejected[1]` are equal"),
        (json!(["b", "a"]), "`chosen` and `rejected[1]` are equal"),
        (json!(["b", " "]), "`rejected[1]` is empty"),
        (json!(["b", 3]), "`rejected[0]`: expected a message with `role` and `content`, found text"),
        (json!([]), "`rejected` is text where another column holds messages"),
    ] {
        let message = refused(&json!({"prompt": "q", "chosen": "a", "rejected": rejected}), &PAIR);
        assert!(message.starts_with(expected) || rejected == json!([]), "{rejected}: {message}");
    }
}

#[test]
fn scored_responses_become_pairs_by_the_rule_of_the_recipe() {
    let folder = folder();
    let row = json!({"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [3, 5, 1, 3]});
    let by = |rule| parse_with(&folder, &row, &PAIR, |settings| settings.pairs_from_scores = rule).unwrap();
    let best = by(PairsFromScores::BestVsWorst);
    // Responses in no pair are not carried along.
    assert_eq!(outline(&best), (vec!["responses[1]", "responses[2]"], vec![(Some(0), Some(1))]));
    assert_eq!(responses(&best), [plain("b"), plain("c")]);
    assert_eq!(best.answers.iter().map(|answer| answer.score).collect::<Vec<_>>(), [Some(5.0), Some(1.0)]);
    let all = by(PairsFromScores::All);
    let pairs = [(0, 2), (1, 0), (1, 2), (1, 3), (3, 2)].map(|(chosen, rejected)| (Some(chosen), Some(rejected)));
    assert_eq!(outline(&all).1, pairs);
    let drawn = by(PairsFromScores::Threshold(3.0));
    assert!(drawn.answers[0].score >= Some(3.0) || drawn.answers[1].score >= Some(3.0));
    assert_eq!(drawn.answers.iter().filter(|answer| answer.score == Some(1.0)).count(), 1);
    // The objective that compares scores finds them here too, and `sft` the best response.
    assert!(parse(&folder, &row, &ODPO).is_ok());
    let learned = parse(&folder, &row, &SFT).unwrap();
    assert_eq!((outline(&learned).0, responses(&learned)), (vec!["responses[1]"], vec![plain("b")]));
}

#[test]
fn rows_that_give_no_pair_are_left_out_and_counted() {
    let tie = json!({"prompt": "q", "responses": ["a", "b"], "scores": [3, 3]});
    let pair = json!({"prompt": "q", "responses": ["a", "b"], "scores": [3, 2]});
    let counted = |rows, pairs| LeftOut { rows, pairs };
    assert_eq!(left_out(&[tie.clone(), pair.clone(), tie.clone()], &PAIR, |_| {}).unwrap(), (1, counted(2, 0)));
    let four = |settings: &mut config::Data| settings.pairs_from_scores = PairsFromScores::Threshold(4.0);
    let message = left_out(&[tie, pair], &PAIR, four).unwrap_err().to_string();
    assert!(message.ends_with("rows.jsonl: 2 rows and no pair: no answer is better than another"), "{message}");
    let lines = counted(1, 2).lines();
    let expected = [
        "1 row left out: none of its answers is better than another",
        "2 pairs whose chosen answer has not the higher score",
    ];
    assert_eq!(lines, expected);
    assert!(LeftOut::default().lines().is_empty());
}

#[test]
fn a_drawn_pair_depends_on_seed_and_row_alone() {
    let folder = folder();
    let row =
        json!({"prompt": "q", "responses": ["a", "b", "c", "d", "e", "f"], "scores": [5, 2, 3, 1, 4, 2]}).to_string();
    let names = |rows: usize, seed: u64| -> Vec<String> {
        let mut settings = settings(write(&folder, "rows.jsonl", vec![row.clone(); rows].join("\n")));
        settings.pairs_from_scores = PairsFromScores::Threshold(3.0);
        let examples = load(&settings, &PAIR, seed).unwrap().examples;
        examples.iter().map(|example| outline(example).0.join(" ")).collect()
    };
    assert_eq!(names(30, 1)[..20], names(20, 1));
    assert_ne!(names(30, 1), names(30, 2));
    assert!(names(30, 1).iter().any(|name| *name != names(30, 1)[0]));
}

#[test]
fn scored_rows_that_cannot_be_used_say_why() {
    let row = |fields: Json| with(json!({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}), fields);
    for (fields, expected) in [
        (json!({"scores": null}), "no `scores`; keys found: `prompt`, `responses`, `scores`"),
        (
            json!({"scores": [1]}),
            "`responses` has 2 responses, `scores` has 1\n  hint: give one score for each response",
        ),
        (json!({"scores": [1, "2"]}), "`scores[1]`: expected a number, found text"),
        (json!({"scores": 1}), "`scores`: expected a list, found a number"),
        (json!({"responses": "a"}), "`responses`: expected a list, found text"),
        (json!({"responses": ["a", "a"]}), "`responses[0]` and `responses[1]` are equal"),
        (json!({"responses": ["a", ""]}), "`responses[1]` is empty"),
        (
            json!({"responses": null, "completions": ["a"]}),
            "`completions[0]`: expected `response` and `annotations`, found text",
        ),
        (
            json!({"responses": null, "completions": [{"response": "a"}]}),
            "`completions[0].annotations`: no aspect with a `Rating` that is a number",
        ),
        (json!({"responses": null, "completions": [{"annotations": {}}]}), "`completions[0]`: no `response`"),
    ] {
        let message = refused(&row(fields.clone()), &PAIR);
        assert!(message.starts_with(expected), "{fields}: {message}");
    }
    // Judged alike, equal samples do no harm.
    let twins = json!({"prompt": "q", "responses": ["a", "a", "b"], "scores": [2, 2, 1]});
    let all = parse_with(&folder(), &twins, &PAIR, |settings| settings.pairs_from_scores = PairsFromScores::All);
    assert_eq!(outline(&all.unwrap()).1.len(), 2);
}

fn rated(text: &str, ratings: [&str; 3]) -> Json {
    let aspect = |rating| json!({"Rating": rating, "Rationale": "…"});
    json!({"model": "m", "response": text, "annotations": {"Helpfulness": aspect(ratings[0]),
        "Ethical Considerations": aspect(ratings[1]), "Visual Faithfulness": aspect(ratings[2])}})
}

#[test]
fn completions_of_vlfeedback_are_scored_by_the_mean_of_their_ratings() {
    let folder = folder();
    let completions =
        [rated("A dog.", ["1", "5", "1"]), rated("A cat.", ["5", "5", "N/A"]), rated("A pet.", ["4", "5", "4"])];
    let row = json!({"id": "x", "img_path": "cat.png", "prompt": "What is this?", "models": ["m", "m", "m"], "completions": completions});
    // As `datasets` writes a sequence of objects.
    let column = |key: &str| completions.iter().map(|completion| completion[key].clone()).collect::<Json>();
    let columns =
        json!({"model": column("model"), "response": column("response"), "annotations": column("annotations")});
    for row in [row.clone(), with(row, json!({"completions": columns}))] {
        let example = parse(&folder, &row, &PAIR).unwrap();
        let question = vec![message("user", vec![Part::Image, said("What is this?")])];
        assert_eq!(example.prompt, Prompt::Messages(question));
        assert_eq!(outline(&example).0, ["completions[0]", "completions[1]"]);
        assert_eq!(outline(&example).1, [(Some(1), Some(0))]);
        assert_eq!(responses(&example), [answer("A dog."), answer("A cat.")]);
        let scores: Vec<f64> = example.answers.iter().filter_map(|answer| answer.score).collect();
        assert_eq!(scores, [7.0 / 3.0, 5.0]);
    }
}

#[test]
fn scores_of_a_pair_are_read_where_they_are_compared() {
    let folder = folder();
    let row = |fields: Json| with(json!({"prompt": "q", "chosen": "a", "rejected": "b"}), fields);
    let scores = |row: &Json, need: &Need| -> Vec<Option<f64>> {
        parse(&folder, row, need).unwrap().answers.iter().map(|answer| answer.score).collect()
    };
    for fields in
        [json!({"score_chosen": 1.99, "score_rejected": 0.05}), json!({"chosen_score": 1.99, "rejected_score": 0.05})]
    {
        assert_eq!(scores(&row(fields.clone()), &ODPO), [Some(1.99), Some(0.05)]);
        assert_eq!(scores(&row(fields), &PAIR), [None, None]);
    }
    let several = row(json!({"rejected": ["b", "c"], "score_chosen": 6, "score_rejected": [4, 5]}));
    assert_eq!(scores(&several, &ODPO), [Some(6.0), Some(4.0), Some(5.0)]);
    let hint = "the objective compares how good the answers are: write `score_chosen` and `score_rejected`";
    let message = refused(&row(json!({})), &ODPO);
    assert!(message.starts_with("no `score_chosen`; keys found: `prompt`") && message.contains(hint), "{message}");
    for (fields, expected) in [
        (json!({"score_chosen": 1}), "no `score_rejected`; keys found"),
        (json!({"score_chosen": true, "score_rejected": 1}), "`score_chosen`: expected a number, found a boolean"),
        (json!({"score_chosen": 1, "chosen_score": 1}), "`chosen_score` beside `score_chosen`"),
        (
            json!({"score_chosen": 2, "score_rejected": 2}),
            "the score of `chosen` is 2, that of `rejected` 2, expected a lower one\n  hint: `odpo_ties: skip`",
        ),
        (json!({"score_chosen": 1, "score_rejected": 2}), "the score of `chosen` is 1, that of `rejected` 2"),
        (
            json!({"rejected": ["b", "c"], "score_chosen": 6, "score_rejected": 4}),
            "`score_rejected`: expected a list of 2 entries like `rejected`, found a number",
        ),
        (
            json!({"rejected": ["b", "c"], "score_chosen": 6, "score_rejected": [4, 7]}),
            "the score of `chosen` is 6, that of `rejected[1]` 7",
        ),
    ] {
        let message = refused(&row(fields.clone()), &ODPO);
        assert!(message.starts_with(expected), "{fields}: {message}");
    }
    let ratio = Need { scores: Scores::Positive, ..ODPO };
    assert!(parse(&folder, &row(json!({"score_chosen": 0.5, "score_rejected": 0.25})), &ratio).is_ok());
    let message = refused(&row(json!({"score_chosen": 0.5, "score_rejected": 0})), &ratio);
    assert!(message.starts_with("the score of `rejected` is 0, expected one above 0\n  hint: the recipe"), "{message}");
    let judged = json!({"prompt": "q", "responses": ["a", "b", "c"], "scores": [2, -1, 1]});
    let message = refused(&judged, &ratio);
    assert!(message.starts_with("the score of `responses[1]` is -1, expected one above 0"), "{message}");
    let skip = |settings: &mut config::Data| settings.odpo_ties = ScoreTies::Skip;
    let tie = row(json!({"score_chosen": 2, "score_rejected": 2}));
    let half = row(json!({"rejected": ["b", "c"], "score_chosen": 6, "score_rejected": [4, 7]}));
    assert_eq!(left_out(&[tie, half.clone()], &ODPO, skip).unwrap(), (1, LeftOut { rows: 1, pairs: 2 }));
    let kept = parse_with(&folder, &half, &ODPO, skip).unwrap();
    assert_eq!(outline(&kept), (vec!["chosen", "rejected[0]"], vec![(Some(0), Some(1))]));
}

#[test]
fn one_labelled_answer_is_a_pair_with_one_side() {
    let folder = folder();
    let row = |label: Json| json!({"image": "cat.png", "prompt": [{"role": "user", "content": "q"}], "completion": "a", "label": label});
    for (label, sides) in [
        (json!(true), (Some(0), None)),
        (json!(false), (None, Some(0))),
        (json!(1), (Some(0), None)),
        (json!(0.0), (None, Some(0))),
    ] {
        let example = parse(&folder, &row(label), &KTO).unwrap();
        assert_eq!((outline(&example), example.images.len()), ((vec!["completion"], vec![sides]), 1));
    }
    let pair = parse(&folder, &json!({"prompt": "q", "chosen": "a", "rejected": "b"}), &KTO).unwrap();
    assert_eq!(outline(&pair).1, [(Some(0), Some(1))]);
    assert!(refused(&row(json!(true)), &PAIR).starts_with("no `chosen`; keys found: "));
    assert!(refused(&row(json!(null)), &KTO).starts_with("`label`: expected true or false, found null\n"));
    assert!(
        refused(&row(json!("yes")), &KTO)
            .starts_with("`label`: expected true or false, found the text `yes`\n  hint: true says")
    );
    let unlabelled = json!({"prompt": "q", "completion": "a"});
    assert!(refused(&unlabelled, &KTO).starts_with("no `label`; keys found: "));
    let scored =
        |score: f64| json!({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": score, "score_rejected": 0});
    assert_eq!(refused(&scored(1e300), &ODPO), "`score_chosen`: expected a number of at most ±1e15, found 1e300");
    // What is called bad is not learned.
    assert_eq!(
        left_out(&[row(json!(true)), row(json!(false))], &SFT, |_| {}).unwrap(),
        (1, LeftOut { rows: 1, pairs: 0 })
    );
}

fn turn(from: &str, value: &str) -> Json {
    json!({"from": from, "value": value})
}

#[test]
fn trajectories_in_sharegpt_s_notation_are_dialogs() {
    let folder = folder();
    let prompt = [turn("human", "instruction"), turn("gpt", "OK"), turn("human", "task")];
    let chosen = [turn("gpt", "look"), turn("observation", "a door"), turn("gpt", "open")];
    let rejected =
        [turn("gpt", "wait"), turn("human", "nothing"), turn("gpt", "wait"), turn("human", "x"), turn("gpt", "stop")];
    for key in ["prompt", "conversations"] {
        let row = json!({"id": "1", key: prompt, "chosen": chosen, "rejected": rejected});
        let example = parse(&folder, &row, &PAIR).unwrap();
        let said = |turns: &[(&str, &str)]| {
            turns.iter().map(|(role, text)| message(role, vec![said(text)])).collect::<Vec<_>>()
        };
        let (user, assistant) = ("user", "assistant");
        assert_eq!(example.prompt, Prompt::Messages(said(&[(user, "instruction"), (assistant, "OK"), (user, "task")])));
        let expected = [
            said(&[(assistant, "look"), ("tool", "a door"), (assistant, "open")]),
            said(&[(assistant, "wait"), (user, "nothing"), (assistant, "wait"), (user, "x"), (assistant, "stop")]),
        ];
        assert_eq!(responses(&example), expected.map(Response::Messages));
    }
    // LLaMA-Factory's ranking rows: one message an answer.
    let row = json!({"conversations": [turn("system", "Be brief."), turn("human", "<image>What is this?")],
        "chosen": turn("gpt", "A cat."), "rejected": turn("gpt", "A dog."), "images": ["cat.png"]});
    let example = parse(&folder, &row, &PAIR).unwrap();
    let question = message("user", vec![Part::Image, said("What is this?")]);
    assert_eq!(example.prompt, Prompt::Messages(vec![message("system", vec![said("Be brief.")]), question]));
    assert_eq!(responses(&example), [answer("A cat."), answer("A dog.")]);
    for (fields, expected) in [
        (
            json!({"chosen": [turn("gpt", "a"), turn("human", "b")]}),
            "`chosen` ends with a message of `user`, expected `assistant`",
        ),
        (
            json!({"chosen": [turn("human", "a"), turn("gpt", "b")]}),
            "`chosen` starts with a message of `user`, expected `assistant`",
        ),
        (
            json!({"rejected": turn("function_call", "{}")}),
            "`rejected.from`: `function_call` is not supported\n  hint: write the call",
        ),
        (json!({"rejected": {"from": "gpt"}}), "`rejected`: no `value`; keys found: `from`"),
        (json!({"prompt": "again"}), "`conversations` beside `prompt`, expected one of the two"),
    ] {
        let message = refused(&with(row.clone(), fields.clone()), &PAIR);
        assert!(message.starts_with(expected), "{fields}: {message}");
    }
}

#[test]
fn a_dialog_for_sft_may_be_in_either_notation() {
    let folder = folder();
    let dialog = [turn("human", "q"), turn("gpt", "a"), turn("human", "r"), turn("gpt", "b"), turn("human", "thanks")];
    let example = parse(&folder, &json!({"conversations": dialog}), &SFT).unwrap();
    assert_eq!(example.prompt, Prompt::Messages(vec![message("user", vec![said("q")])]));
    let turns = [("assistant", "a"), ("user", "r"), ("assistant", "b"), ("user", "thanks")];
    let turns = turns.map(|(role, text)| message(role, vec![said(text)])).to_vec();
    assert_eq!(responses(&example), [Response::Messages(turns)]);
    assert!(refused(&json!({"conversations": dialog}), &PAIR).starts_with("no `chosen`; keys found: "));
}

/// A prompt with one image, a chosen trajectory that saw one more, a rejected one that saw two.
fn seen() -> Json {
    json!({"prompt": [turn("human", "<image>\nFind the cat.")],
        "chosen": [turn("gpt", "left"), turn("human", "<image>"), turn("gpt", "found")],
        "rejected": [turn("gpt", "right"), turn("human", "<image>\nA wall."), turn("gpt", "on"), turn("human", "<image>"), turn("gpt", "lost")],
        "images": ["cat.png", "dog.png", "images/cat.jpg", "cat.png"]})
}

fn paths(folder: &TempDir, names: &[&str]) -> Vec<ImageSource> {
    names.iter().map(|name| ImageSource::Path(folder.path().join(name))).collect()
}

#[test]
fn images_of_observations_are_those_of_the_row_in_the_order_of_reading() {
    let folder = folder();
    let example = parse(&folder, &seen(), &PAIR).unwrap();
    assert_eq!(example.images, paths(&folder, &["cat.png", "dog.png", "images/cat.jpg", "cat.png"]));
    let content = |response: &Response, turn: usize| match response {
        Response::Messages(messages) => messages[turn].content.clone(),
        Response::Text(_) => Vec::new(),
    };
    assert_eq!(content(&example.answers[0].response, 1), [Part::Image]);
    assert_eq!(content(&example.answers[1].response, 1), [Part::Image, said("A wall.")]);
    // `sft` does not read the rejected trajectory, whose images come last.
    let learned = parse(&folder, &seen(), &SFT).unwrap();
    assert_eq!(learned.images, paths(&folder, &["cat.png", "dog.png"]));
    // The same as parts that carry their images.
    let part = |name: &str| json!({"role": "user", "content": [{"type": "image", "image": name}]});
    let said = |text: &str| json!({"role": "assistant", "content": text});
    let row = json!({"prompt": [part("cat.png")], "chosen": [said("left"), part("dog.png"), said("found")],
        "rejected": [said("right"), part("images/cat.jpg"), said("lost")]});
    assert_eq!(parse(&folder, &row, &PAIR).unwrap().images, paths(&folder, &["cat.png", "dog.png", "images/cat.jpg"]));
    for (fields, expected) in [
        (json!({"images": ["cat.png"]}), "prompt and answers have 4 `<image>` marks, the row has 1 image"),
        (
            json!({"chosen": [turn("gpt", "<image>")]}),
            "prompt and answers have 3 `<image>` marks, the row has 4 images",
        ),
        (
            json!({"chosen": [turn("gpt", "see <image>")], "images": ["cat.png", "cat.png", "cat.png"]}),
            "`chosen` holds the mark `<image>`, responses have no images",
        ),
    ] {
        let message = refused(&with(seen(), fields.clone()), &PAIR);
        assert!(message.starts_with(expected), "{fields}: {message}");
    }
}

fn hpo(sides: Sides) -> Need {
    let rewards = ["safety", FLESCH_KINCAID, "style"].map(str::to_owned).to_vec();
    Need { rewards, ..Need::of(sides) }
}

#[test]
fn rewards_are_read_by_name_or_computed_from_the_answer() {
    let folder = folder();
    let grade = flesch_kincaid;
    let rewards = |row: &Json, need: &Need| -> Vec<Vec<f64>> {
        parse(&folder, row, need).unwrap().answers.into_iter().map(|answer| answer.rewards).collect()
    };
    let both = hpo(Sides::Both);
    let expected = [vec![0.5, grade("A cat."), 1.0], vec![-0.25, grade("Caterpillars everywhere."), 2.0]];
    let row =
        |fields: Json| with(json!({"prompt": "q", "chosen": "A cat.", "rejected": "Caterpillars everywhere."}), fields);
    for fields in [
        json!({"aux_chosen": {"safety": 0.5, "style": 1}, "aux_rejected": {"style": 2, "safety": -0.25, "other": "x"}}),
        json!({"safety_chosen": 0.5, "safety_rejected": -0.25, "style_chosen": 1, "style_rejected": 2}),
        json!({"safety_chosen": 0.5, "safety_rejected": -0.25, "aux_chosen": {"style": 1}, "aux_rejected": {"style": 2}}),
    ] {
        assert_eq!(rewards(&row(fields), &both), expected);
    }
    let several = json!({"prompt": "q", "chosen": "a", "rejected": ["b", "c"], "aux_chosen": {"safety": 1, "style": 2},
        "aux_rejected": [{"safety": 3}, {"safety": 4}], "style_rejected": [5, 6]});
    let of = |text: &str, safety: f64, style: f64| vec![safety, grade(text), style];
    assert_eq!(rewards(&several, &both), [of("a", 1.0, 2.0), of("b", 3.0, 5.0), of("c", 4.0, 6.0)]);
    let judged = json!({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2], "safety": [7, 8], "aux": [{"style": 9}, {"style": 10}]});
    assert_eq!(rewards(&judged, &both), [of("a", 7.0, 9.0), of("b", 8.0, 10.0)]);
    let single = json!({"prompt": "q", "completion": "a", "label": true, "aux": {"safety": 1, "style": 2}});
    assert_eq!(rewards(&single, &hpo(Sides::Either)), [of("a", 1.0, 2.0)]);
    // What the assistant says counts, not what it is told.
    let turns = json!([{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Extraordinary!"}, {"role": "assistant", "content": "Yes."}]);
    let dialog = json!({"prompt": [{"role": "user", "content": "q"}], "completion": turns, "label": true});
    let alone = Need { rewards: vec![FLESCH_KINCAID.to_owned()], ..KTO };
    assert_eq!(rewards(&dialog, &alone), [vec![grade("A cat.\nYes.")]]);
    for (fields, expected) in [
        (json!({"aux_rejected": {"safety": 1, "style": 1}}), "no reward `safety` for `chosen`; keys found: "),
        (json!({"aux_chosen": {"safety": 1}, "aux_rejected": {"safety": 1}}), "no reward `style` for `chosen`"),
        (json!({"aux_chosen": {"safety": "high"}}), "`aux_chosen.safety`: expected a number, found text"),
        (json!({"aux_chosen": [1]}), "`aux_chosen`: expected rewards by name, found a list"),
        (json!({"safety_chosen": {}}), "`safety_chosen`: expected a number, found an object"),
    ] {
        let message = refused(&row(fields.clone()), &both);
        assert!(message.starts_with(expected), "{fields}: {message}");
    }
    let message = refused(&row(json!({})), &both);
    assert!(message.contains("write it as `aux_chosen: {\"safety\": number}` or as `safety_chosen`"), "{message}");
}

#[test]
fn labels_and_rewards_are_read_from_parquet() {
    use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType};
    use ::parquet::file::writer::SerializedFileWriter;
    let folder = folder();
    let schema = "message rows { required binary prompt (UTF8); required binary completion (UTF8); required boolean label; \
        required double safety; required double unrelated; }";
    let schema = Arc::new(::parquet::schema::parser::parse_message_type(schema).unwrap());
    let path = folder.path().join("rows.parquet");
    let mut file = SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    for text in ["q", "a"] {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&[ByteArray::from(text), ByteArray::from(text)], None, None)
            .unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<BoolType>().write_batch(&[true, false], None, None).unwrap();
    column.close().unwrap();
    for _ in 0..2 {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[0.5, 0.75], None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    let need = Need { rewards: vec!["safety".to_owned()], ..KTO };
    let dataset = load(&settings(path), &need, 7).unwrap();
    assert!(dataset.problems.is_empty(), "{:?}", dataset.problems);
    let found: Vec<_> =
        dataset.examples.iter().map(|example| (example.pairs[0].chosen, example.answers[0].rewards.clone())).collect();
    assert_eq!(found, [(Some(0), vec![0.5]), (None, vec![0.75])]);
}

#[test]
fn images_are_dropped_with_their_places() {
    let folder = folder();
    let dropped =
        |row: &Json| parse_with(&folder, row, &PAIR, |settings| settings.train_images = TrainImages::Drop).unwrap();
    let text = json!({"images": ["cat.png", "dog.png"], "rejected_images": ["dog.png", "cat.png"],
        "prompt": "USER: <image>\n<image> Which? ASSISTANT:", "chosen": "a", "rejected": "b"});
    let example = dropped(&text);
    assert_eq!(example.prompt, Prompt::Text("USER:  Which? ASSISTANT:".to_owned()));
    assert!(example.images.is_empty() && example.rejected_images.is_empty());
    let example = dropped(&seen());
    assert_eq!(example.prompt, Prompt::Messages(vec![message("user", vec![said("Find the cat.")])]));
    let turns = vec![
        message("assistant", vec![said("left")]),
        message("user", vec![]),
        message("assistant", vec![said("found")]),
    ];
    assert_eq!(example.answers[0].response, Response::Messages(turns));
    // Text about the mark is text.
    let about =
        json!({"prompt": [{"role": "user", "content": "What does <image> mean?"}], "chosen": "a", "rejected": "b"});
    assert_eq!(dropped(&about).prompt, parse(&folder, &about, &PAIR).unwrap().prompt);
}

#[test]
fn kept_log_probs_belong_to_one_chosen_and_one_rejected_answer() {
    let logps = json!({"ref_chosen_logps": -1, "ref_rejected_logps": -2, "prompt": "q", "chosen": "a"});
    let columns = |settings: &mut config::Data| settings.reference_logps = ReferenceLogps::Columns;
    let read =
        |rejected: Json| parse_with(&folder(), &with(logps.clone(), json!({"rejected": rejected})), &PAIR, columns);
    assert_eq!(read(json!("b")).unwrap().reference, Some(ReferenceSums { chosen: -1.0, rejected: -2.0 }));
    let message = read(json!(["b", "c"])).unwrap_err();
    assert!(
        message.starts_with("log-probs of a reference beside other than one chosen and one rejected answer"),
        "{message}"
    );
}

#[test]
fn the_documentation_tells_the_truth() {
    let text = include_str!("../../../../docs/data.md");
    let folder = folder();
    let mut blocks = 0;
    for block in text.split("```json").skip(1) {
        let (kind, rest) = block.split_once('\n').unwrap();
        let rows = rest.split_once("```").unwrap().0;
        let hpo = Need { rewards: vec!["safety".to_owned(), FLESCH_KINCAID.to_owned()], ..PAIR };
        let need = match kind.trim() {
            "" => &PAIR,
            "sft" => &SFT,
            "kto" => &KTO,
            "odpo" => &ODPO,
            "hpo" => &hpo,
            other => panic!("rows for {other}"),
        };
        let path = write(&folder, "documented.jsonl", rows);
        assert!(!examples(path, need).is_empty(), "{rows}");
        blocks += 1;
    }
    let mut refused = 0;
    for line in text.lines().filter(|line| line.starts_with("| `{")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(|cell| cell.trim()).collect();
        let row: Json = serde_json::from_str(cells[0].trim_matches('`')).unwrap();
        let message = parse(&folder, &row, &PAIR).unwrap_err();
        assert!(message.starts_with(cells[1]), "{line}\n{message}");
        refused += 1;
    }
    assert!(blocks >= 7 && refused >= 8, "{blocks} blocks, {refused} refused rows");
}

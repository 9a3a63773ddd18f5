//! Whole pages, from folders to HTML. What only a browser can tell is in `checks/report/`.

use super::*;
use base64::Engine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp; <!--";

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, text).expect("written");
}

fn run(folder: &Path, name: &str, entries: &Value) -> Source {
    let path = folder.join(name);
    let state = json!({ "global_step": 20, "max_steps": 20, "log_history": entries });
    write(&path.join("trainer_state.json"), &state.to_string());
    Source { name: None, path }
}

fn evaluation(path: &Path, chair: f64, rows: &[Value]) -> Source {
    let figure =
        json!({ "name": "CHAIRi", "value": chair, "low": chair - 2.0, "high": chair + 2.0, "better": "lower" });
    let metrics =
        json!({ "benchmark": "chair", "model": "m", "adapter": null, "answers": rows.len(), "figures": [figure] });
    write(&path.join("metrics.json"), &metrics.to_string());
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    write(&path.join("rows.jsonl"), &rows);
    Source { name: None, path: path.to_owned() }
}

fn row(id: i32, answer: &str, invented: &[&str]) -> Value {
    json!({ "id": id, "question": "What is there?", "answer": answer, "hallucinated": invented, "image": "/no/such.png" })
}

fn page(sources: &[Source]) -> Page {
    let report = Report::read(sources, 4).unwrap_or_else(|error| panic!("{error}"));
    report.render(&Additions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// What stands from `start` up to and with `end`.
fn part<'a>(html: &'a str, start: &str, end: &str) -> &'a str {
    let from = html.find(start).unwrap_or_else(|| panic!("{start} is not there"));
    let rest = &html[from..];
    &rest[..rest.find(end).unwrap_or_else(|| panic!("{end} is not there")) + end.len()]
}

#[test]
fn no_text_becomes_markup() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut metrics = json!({ "step": 1, "loss": 0.7 });
    metrics[HOSTILE] = json!(1.0);
    let mut runs = vec![run(folder.path(), "run", &json!([metrics]))];
    let hostile = json!({ "id": HOSTILE, "question": HOSTILE, "answer": HOSTILE, "hallucinated": [HOSTILE, "img"], "image": HOSTILE });
    runs.push(evaluation(&folder.path().join("base"), 30.0, &[hostile]));
    runs.iter_mut().for_each(|run| run.name = Some(HOSTILE.to_owned()));
    let report = Report::read(&runs, 4).expect("read");
    let facts = vec![(HOSTILE.to_owned(), HOSTILE.to_owned())];
    let additions = Additions { facts: [(runs[0].path.clone(), facts)].into(), ..Additions::default() };
    let html = report.render(&additions).expect("a page").html;
    for sign in ["<script>alert", "<img src=x"] {
        assert!(!html.contains(sign), "{sign}");
    }
    // Data and program, each ended once.
    assert_eq!(
        (html.matches("<script").count(), html.matches("</script").count(), html.matches("<!--").count()),
        (2, 2, 0)
    );
    assert_balanced(&html);
}

/// Every element that is opened is closed, in order, outside of script and style.
fn assert_balanced(html: &str) {
    const VOID: [&str; 5] = ["meta", "img", "input", "br", "!doctype"];
    let (mut open, mut rest): (Vec<&str>, &str) = (Vec::new(), html);
    while let Some(start) = rest.find('<') {
        let end = rest[start..].find('>').expect("a tag ends") + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().expect("a name");
        match tag {
            _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "near {}", &rest[..rest.len().min(80)]),
            _ if tag.ends_with('/') || VOID.contains(&name) => {}
            _ => open.push(name),
        }
        if matches!(name, "script" | "style") && !tag.starts_with('/') {
            rest = &rest[rest.find(&format!("</{name}>")).expect("it ends")..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn only_the_pages_own_script_and_style_may_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let html = page(&[run(folder.path(), "run", &json!([{ "step": 1, "loss": 0.7 }]))]).html;
    let policy = part(&html, "<meta http-equiv=\"Content-Security-Policy\"", ">");
    for name in ["script", "style"] {
        let text = html.split(&format!("<{name}>")).nth(1).and_then(|rest| rest.split(&format!("</{name}>")).next());
        let digest = Sha256::digest(text.expect("one").as_bytes());
        let digest = base64::engine::general_purpose::STANDARD.encode(digest);
        let escaped = digest.replace('/', "&#x2f;");
        assert!(policy.contains(&format!("{name}-src &#x27;sha256-{escaped}&#x27;")), "{name}: {policy}");
    }
    assert!(!html.contains(" style=") && !html.contains(" onclick=") && !html.contains("http://www.w3.org/1999"));
    assert!(!html.contains("src=\"http") && !html.contains("url("), "nothing is loaded");
}

#[test]
fn a_card_shows_the_answers_side_by_side() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = evaluation(&folder.path().join("base"), 30.0, &[row(1, "Two cups & a dog.", &["cup", "table"])]);
    let mut after = evaluation(&folder.path().join("after"), 20.0, &[row(1, "A dog.", &[])]);
    after.name = Some("mDPO".to_owned());
    let html = page(&[base, after]).html;
    insta::assert_snapshot!(part(&html, "<div class=\"said\">", "</dl>"), @r##"
    <div class="said">
    <p class="eyebrow">chair · 1</p>
    <h3>What is there?</h3>
    <dl class="answers">
    <div data-owner="0" data-invented>
    <dt><svg class="key s0" width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true" focusable="false"><use href="#m0"/></svg> base</dt>
    <dd>Two <mark class="inv"><span class="vh">invented: </span>cups<span class="cross" aria-hidden="true">✗</span></mark> &amp; a dog.<p class="elsewhere">also counted as invented: <mark class="inv">table<span class="cross" aria-hidden="true">✗</span></mark></p></dd>
    </div>
    <div data-owner="1">
    <dt><svg class="key s1" width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true" focusable="false"><use href="#m1"/></svg> mDPO</dt>
    <dd>A dog.</dd>
    </div>
    </dl>
    "##);
    insta::assert_snapshot!(part(&html, "<div class=\"missing\"", "</div>"), @r#"<div class="missing" role="img" aria-label="no picture"><span>cannot read `such.png`: No such file or directory (os error 2)</span></div>"#);
    insta::assert_snapshot!(part(&html, "<tbody role", "</tbody>"), @r##"
    <tbody role="rowgroup">
    <tr role="row" class="figure"><th role="rowheader" scope="rowgroup" colspan="3">CHAIRi <span class="muted">lower is better</span></th><td role="cell" class="plotcol" aria-hidden="true"><svg class="axis" width="100%" height="14"><text x="19.21%" y="11" text-anchor="middle">20</text><text x="50.0%" y="11" text-anchor="middle">25</text><text x="80.79%" y="11" text-anchor="middle">30</text></svg></td><td role="cell" class="delta"></td></tr>
    <tr role="row" data-owner="0">
    <th role="rowheader" scope="row"><svg class="key s0" width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true" focusable="false"><use href="#m0"/></svg> base</th>
    <td role="cell" class="num">30.0</td>
    <td role="cell" class="num ci">28.0 to 32.0</td>
    <td role="cell" class="plotcol" aria-hidden="true"><svg class="dot s0" width="100%" height="20"><line class="grid" x1="19.21%" x2="19.21%" y1="0" y2="20"/><line class="grid" x1="50.0%" x2="50.0%" y1="0" y2="20"/><line class="grid" x1="80.79%" x2="80.79%" y1="0" y2="20"/><line class="span" x1="68.47%" x2="93.1%" y1="10" y2="10"/><svg x="80.79%" y="10" overflow="visible"><use href="#m0"/></svg></svg></td>
    <td role="cell" class="delta base">baseline</td>
    </tr>
    <tr role="row" data-owner="1">
    <th role="rowheader" scope="row"><svg class="key s1" width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true" focusable="false"><use href="#m1"/></svg> mDPO</th>
    <td role="cell" class="num">20.0</td>
    <td role="cell" class="num ci">18.0 to 22.0</td>
    <td role="cell" class="plotcol" aria-hidden="true"><svg class="dot s1" width="100%" height="20"><line class="grid" x1="19.21%" x2="19.21%" y1="0" y2="20"/><line class="grid" x1="50.0%" x2="50.0%" y1="0" y2="20"/><line class="grid" x1="80.79%" x2="80.79%" y1="0" y2="20"/><line class="span" x1="6.9%" x2="31.53%" y1="10" y2="10"/><svg x="19.21%" y="10" overflow="visible"><use href="#m1"/></svg></svg></td>
    <td role="cell" class="delta better">−10.0 clearly better</td>
    </tr>
    </tbody>
    "##);
}

#[test]
fn evaluations_over_other_questions_have_a_table_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = |ids: std::ops::Range<i32>| {
        let about = |id: i32| json!({ "id": id, "question": "What is there?", "answer": "A dog.", "image": format!("/{id}.png") });
        ids.map(about).collect::<Vec<_>>()
    };
    // Ids that are places in files differ by how the files are called; pictures and texts are the same.
    let renamed: Vec<Value> = rows(0..3)
        .into_iter()
        .map(|mut row| {
            row["id"] = json!(format!("./pairs.jsonl line {}", row["id"]));
            row
        })
        .collect();
    let named = |name: &str, chair, rows: &[Value]| Source {
        name: Some(name.to_owned()),
        ..evaluation(&folder.path().join(name), chair, rows)
    };
    // As many answers, but to other questions.
    let sources = [named("dpo", 30.0, &rows(0..3)), named("other", 10.0, &rows(1..4)), named("base", 40.0, &renamed)];
    let page = page(&sources);
    let captions: Vec<&str> =
        page.html.split("<caption>chair ").skip(1).map(|rest| part(rest, "", "</caption>")).collect();
    assert_eq!(captions.len(), 2);
    assert!(
        captions[0].contains("3 answers each · sample 1 of 2") && captions[1].contains("3 answers · sample 2 of 2")
    );
    let changes = |table: &str| {
        let cells =
            table.split("class=\"delta ").skip(1).map(|rest| part(rest, ">", "<").trim_matches(['>', '<']).to_owned());
        cells.collect::<Vec<String>>()
    };
    let tables: Vec<&str> = page.html.split("<table class=\"figures\"").skip(1).collect();
    // The one called base is what others are compared with, wherever it stands; the other sample is compared with nothing.
    assert_eq!(changes(tables[0]), ["−10.0 clearly better", "baseline"]);
    assert_eq!(changes(tables[1])[0], "baseline");
    assert!(page.notes.iter().any(|note| note.starts_with("evaluations of `chair` are over different questions")));
}

#[test]
fn the_model_that_others_are_compared_with_is_the_bare_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = [row(1, "A dog.", &[])];
    let adapted = |name: &str| {
        let source = evaluation(&folder.path().join(name), 30.0, &rows);
        let file = source.path.join("metrics.json");
        let text = fs::read_to_string(&file).expect("figures").replace("\"adapter\":null", "\"adapter\":\"runs/x\"");
        fs::write(&file, text).expect("written");
        source
    };
    let run = run(folder.path(), "run", &json!([{ "step": 1, "loss": 0.7 }]));
    for step in [0, 20] {
        evaluation(&run.path.join(format!("evaluations/step-{step}/chair")), 30.0, &rows);
    }
    let base = |sources: &[Source]| {
        let html = page(sources).html;
        let before = html.split("delta base\">").next().expect("a baseline");
        let name = before.rsplit("</svg> ").find_map(|rest| rest.split_once("</th>")).expect("a name").0;
        name.to_owned()
    };
    let llava = evaluation(&folder.path().join("llava"), 30.0, &rows);
    assert_eq!(base(&[adapted("dpo"), run.clone(), llava]), "llava");
    assert_eq!(base(&[adapted("dpo"), run.clone()]), "run · step 0");
    assert_eq!(base(&[adapted("dpo"), adapted("mdpo")]), "dpo");
    assert_eq!(base(&[run, adapted("base")]), "base");
}

#[test]
fn a_score_is_rounded_and_a_row_without_a_picture_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let scored = |id: i32, score: f64| json!({ "id": id, "question": "Q?", "answer": "A.", "score": score });
    let page = page(&[evaluation(&folder.path().join("base"), 30.0, &[scored(1, -2.716_4), scored(2, 6.0)])]);
    assert!(page.html.contains(">score −2.72<") && page.html.contains(">score 6<"), "scores");
    assert_eq!(page.html.matches("no picture: the row names none").count(), 2);
    assert_eq!(page.notes, ["questions of the gallery whose rows name no picture: 2"]);
}

#[test]
fn what_is_left_out_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let entries: Vec<Value> = (1..=1000).map(|step| json!({ "step": step, "loss": 0.5, "grad_norm": null })).collect();
    let rows: Vec<Value> = (0..9).map(|id| row(id, "A dog.", &[])).collect();
    let long = run(folder.path(), "long", &json!(entries));
    let page = page(&[long, evaluation(&folder.path().join("base"), 30.0, &rows)]);
    insta::assert_snapshot!(page.notes.join("\n"), @r#"
    long: values of `grad_norm` that are not numbers, left out: 1000
    long: 1000 log entries thinned to 400, each the mean of its neighbours within their range
    pictures of the gallery that are missing: 1; their places say why
    the gallery shows 4 of 9 questions, evenly spaced over the files and not chosen by result
    "#);
    assert!(page.html.contains("the gallery shows 4 of 9 questions"));
}

#[test]
fn an_unfinished_run_shows_its_newest_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    for step in [5, 20, 10] {
        let state = json!({ "global_step": step, "max_steps": 40, "log_history": [{ "step": step, "loss": 0.5 }] });
        write(&folder.path().join(format!("checkpoint-{step}/trainer_state.json")), &state.to_string());
    }
    let page = page(&[Source { name: Some("half".to_owned()), path: folder.path().to_owned() }]);
    assert!(page.html.contains("20 of 40 steps"));
    assert_eq!(page.notes, ["half: not finished; shown as far as `checkpoint-20/trainer_state.json`"]);
}

#[test]
fn evaluations_of_a_run_are_shown_first_and_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = run(folder.path(), "run", &json!([{ "step": 1, "loss": 0.7 }]));
    for step in [0, 20, 100] {
        let place = source.path.join(format!("evaluations/step-{step}"));
        evaluation(&place.join("chair"), 30.0, &[row(1, "A dog.", &[])]);
        write(
            &place.join("samples.jsonl"),
            &format!("{}\n", json!({ "id": "p", "question": "Q?", "answer": format!("step {step}") })),
        );
    }
    let report = Report::read(&[source], 4).expect("read");
    let names: Vec<&str> = report.evaluations.iter().map(|evaluation| evaluation.name.as_str()).collect();
    assert_eq!(names, ["run · step 0", "run · step 100", "run · step 0", "run · step 100"]);
    assert_eq!((report.cards.len(), report.names.len()), (2, 1));
}

#[test]
fn every_problem_names_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    write(&place("empty/README.md"), "");
    write(&place("broken/metrics.json"), "{\"benchmark\": 3}");
    write(&place("cut/trainer_state.json"), "{\"log_history\": [");
    write(&place("odd/trainer_state.json"), "{\"log_history\": [{\"loss\": 1}]}");
    let good = evaluation(&place("half"), 30.0, &[row(1, "x", &[]), row(2, "y", &[])]);
    let text = fs::read_to_string(good.path.join("rows.jsonl")).expect("rows");
    fs::write(good.path.join("rows.jsonl"), &text[..text.len() - 9]).expect("written");
    evaluation(&place("double"), 30.0, &[row(7, "x", &[]), row(7, "y", &[])]);
    let names = ["nowhere", "empty", "broken", "cut", "odd", "half", "double"];
    let sources: Vec<Source> = names.iter().map(|name| Source { name: None, path: place(name) }).collect();
    let text = Report::read(&sources, 4).expect_err("seven problems").to_string();
    insta::assert_snapshot!(text.replace(&folder.path().display().to_string(), "…"), @r#"
    7 problems
    …/nowhere: expected a folder, found nothing
      hint: name the `output_dir` of a training run or a folder that `mdpo eval --output` wrote
    …/empty: neither a training run nor an evaluation: it has no `trainer_state.json`, no `checkpoint-N` and no `metrics.json`
      hint: a run shows from its first checkpoint on; an evaluation is what `mdpo eval --output` wrote
    …/broken/metrics.json: expected the figures of a benchmark in JSON: invalid type: integer `3`, expected a string at line 1 column 15
    …/cut/trainer_state.json: expected the log of a run in JSON: EOF while parsing a list at line 1 column 17
    …/odd/trainer_state.json entry 1 of `log_history`: expected an object with a number `step`
    …/half/rows.jsonl line 2: expected an answered question in JSON: EOF while parsing a string at line 1 column 82
      hint: an interrupted write ends in half a line; evaluate again, or remove that line
    …/double/rows.jsonl line 2: the id `7` already stands in line 1
    "#);
    let same = evaluation(&place("a/same"), 30.0, &[]);
    let text = Report::read(&[same, evaluation(&place("b/same"), 30.0, &[])], 4).expect_err("one name").to_string();
    insta::assert_snapshot!(text.replace(&folder.path().display().to_string(), "…"), @r#"
    …/b/same: the name `same` is already taken (chair)
      hint: give it another one: `mdpo report NAME=PATH`
    "#);
}

#[test]
fn a_source_may_have_a_name() {
    let named = |name: Option<&str>, path: &str| Source { name: name.map(str::to_owned), path: path.into() };
    assert_eq!(Source::parse("base=out/base"), named(Some("base"), "out/base"));
    assert_eq!(Source::parse("out/base"), named(None, "out/base"));
    assert_eq!(Source::parse("=out"), named(None, "=out"));
    let folder = tempfile::tempdir().expect("a folder");
    let odd = folder.path().join("a=b");
    fs::create_dir(&odd).expect("made");
    assert_eq!(Source::parse(&odd.to_string_lossy()).name, None);
    assert_eq!(named(None, "/some/where/run/").title(), "run");
}

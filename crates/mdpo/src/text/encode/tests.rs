//! Where prompts end, what counts, where images stand and what is cut.

use super::super::parity_tests::{encoder_of, example};
use super::*;
use proptest::prelude::*;

fn user(text: &str) -> Message {
    Message { role: "user".into(), content: vec![Part::Text(text.into())] }
}

fn said(text: &str) -> Message {
    Message { role: "assistant".into(), content: vec![Part::Text(text.into())] }
}

fn chat(images: usize, prompt: &[Message], chosen: &[Message], rejected: &[Message]) -> Example {
    let [chosen, rejected] = [chosen, rejected].map(|turns| Response::Messages(turns.to_vec()));
    example(images, Prompt::Messages(prompt.to_vec()), chosen, rejected)
}

fn plain(images: usize, prompt: &str, chosen: &str, rejected: &str) -> Example {
    let [chosen, rejected] = [chosen, rejected].map(|text| Response::Text(text.into()));
    example(images, Prompt::Text(prompt.into()), chosen, rejected)
}

fn counted_text(encoder: &Encoder, tokens: &Tokens) -> String {
    let ids = tokens.ids.iter().zip(&tokens.counted).filter(|(_, counted)| **counted);
    ids.filter_map(|(id, _)| encoder.tokenizer().token(*id)).collect::<String>().replace('Ġ', " ").replace('Ċ', "\n")
}

fn encode(encoder: &Encoder, example: &Example) -> EncodedRow {
    encoder.encode(example, None, Overlong::Refuse).unwrap()
}

fn refused(encoder: &Encoder, example: &Example) -> String {
    encoder.encode(example, None, Overlong::Refuse).unwrap_err().to_string()
}

#[test]
fn a_templated_prompt_and_its_answers_are_tokenized_apart_and_closed() {
    let encoder = encoder_of("llava-1.5 legacy");
    let row = encode(&encoder, &plain(1, "USER: <image>\nIs there a dog? ASSISTANT:", "No.", "Yes."));
    assert_eq!(row.encoded.prompt.ids, [1, 370, 297, 479, 479, 479, 479, 297, 13, 267, 290, 329, 298, 363, 262, 376]);
    assert_eq!(row.encoded.prompt.images, [ImageSlot { start: 3, len: 4, image: 0 }]);
    let pieces: Vec<_> = row.encoded.answers[0].ids.iter().filter_map(|&id| encoder.tokenizer().token(id)).collect();
    assert_eq!((pieces[0].as_str(), pieces[pieces.len() - 1].as_str()), ("▁No", "</s>"));
    assert!(!row.seam);
    // TRL's standard rows carry the space themselves: it must not be doubled.
    let spaced = encode(&encoder, &plain(1, "USER: <image>\nIs there a dog? ASSISTANT:", " No.", " Yes."));
    assert_eq!(spaced.encoded, row.encoded);
    // A row that writes the EOS keeps the one it has.
    let closed = encode(&encoder, &plain(1, "<s>USER: <image>\nIs there a dog? ASSISTANT:", "No.</s>", "Yes.</s>"));
    assert_eq!(closed.encoded, row.encoded);
}

#[test]
fn what_others_say_in_a_response_does_not_count() {
    let encoder = encoder_of("chatml llava");
    let turns = |last: &str| [said("One cat."), user("Sure?"), said(last)];
    let row = encode(&encoder, &chat(0, &[user("How many?")], &turns("Yes."), &turns("No.")));
    assert_eq!(counted_text(&encoder, &row.encoded.answers[0]), "One cat.<|im_end|>\nYes.<|im_end|>\n");
    let all = Tokens { counted: vec![true; row.encoded.answers[0].ids.len()], ..row.encoded.answers[0].clone() };
    assert_eq!(
        counted_text(&encoder, &all),
        "One cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    );
}

/// What each turn of an answer says.
fn turns(encoder: &Encoder, tokens: &Tokens) -> Vec<String> {
    let of = |turn: &Range<usize>| {
        let counted = vec![true; turn.len()];
        counted_text(encoder, &Tokens { ids: tokens.ids[turn.clone()].to_vec(), counted, ..Tokens::default() })
    };
    tokens.turns.iter().map(of).collect()
}

#[test]
fn turns_are_those_of_the_assistant_with_their_ends() {
    let encoder = encoder_of("chatml llava");
    let chosen = [said("One cat."), user("Sure?"), said("Yes."), user("And now?"), said("Two.")];
    let row = encode(&encoder, &chat(0, &[user("How many?")], &chosen, &[said("No.")]));
    let [chosen, rejected] = &row.encoded.answers[..] else { panic!("two answers") };
    let expected = ["One cat.<|im_end|>\n", "Yes.<|im_end|>\n", "Two.<|im_end|>\n"];
    assert_eq!(turns(&encoder, chosen), expected);
    assert_eq!(turns(&encoder, rejected), ["No.<|im_end|>\n"]);
    let spoken = chosen.turns.iter().flat_map(|turn| turn.clone());
    assert!(spoken.eq((0..chosen.ids.len()).filter(|&i| chosen.counted[i])));
    assert!(row.encoded.prompt.turns.is_empty());
    // A template without ends of turns gets one at the end of the answer, within its last turn.
    let plain = encode(&encoder_of("llava-1.5 legacy"), &plain(0, "USER: Hi ASSISTANT:", "No.", "Yes."));
    assert!(plain.encoded.answers[0].turns.iter().eq([&(0..plain.encoded.answers[0].ids.len())]));
}

#[test]
fn images_between_the_turns_of_an_answer_stand_where_they_were_seen() {
    let encoder = encoder_of("chatml llava");
    let seen = |text: &str| Message { role: "user".into(), content: vec![Part::Image, Part::Text(text.into())] };
    let chosen = [said("Look."), seen("A door."), said("Open it.")];
    let rejected = [said("Wait."), seen("A wall."), said("Turn."), seen("A tree."), said("Stop.")];
    let row = encode(&encoder, &chat(4, &[seen("Where are you?")], &chosen, &rejected));
    let numbers = |tokens: &Tokens| tokens.images.iter().map(|slot| slot.image).collect::<Vec<_>>();
    assert_eq!(numbers(&row.encoded.prompt), [0]);
    assert_eq!(row.encoded.answers.iter().map(numbers).collect::<Vec<_>>(), [vec![1], vec![2, 3]]);
    for answer in &row.encoded.answers {
        for slot in &answer.images {
            assert!(!answer.counted[slot.start..slot.start + slot.len].contains(&true));
            assert!(answer.turns.iter().all(|turn| turn.end <= slot.start || turn.start >= slot.start + slot.len));
        }
    }
}

#[test]
fn an_answer_loses_whole_turns_where_turns_are_kept() {
    let encoder = encoder_of("chatml llava");
    let chosen = [said("One cat."), user("Sure?"), said("Yes."), user("And now?"), said("Two.")];
    let row = chat(0, &[user("How many?")], &chosen, &[said("No.")]);
    let whole = encode(&encoder, &row).encoded;
    let prompt = whole.prompt.ids.len();
    let cut = |room: usize| encoder.encode(&row, Some(prompt + room), Overlong::KeepTurns);
    let ends: Vec<usize> = whole.answers[0].turns.iter().map(|turn| turn.end).collect();
    for room in ends[0]..whole.answers[0].ids.len() {
        let kept = ends.iter().filter(|end| **end <= room).count();
        let cut = cut(room).unwrap();
        let answer = &cut.encoded.answers[0];
        assert!(cut.shortened);
        assert_eq!((answer.ids.len(), &answer.turns[..]), (ends[kept - 1], &whole.answers[0].turns[..kept]));
        assert_eq!(cut.encoded.answers[1], whole.answers[1]);
    }
    assert!(!cut(whole.answers[0].ids.len()).unwrap().shortened);
    let error = cut(ends[0] - 1).unwrap_err().to_string();
    assert!(error.contains("leaves nothing of a response"), "{error}");
}

#[test]
fn a_token_over_the_seam_leaves_the_prompt_whole_and_is_reported() {
    let encoder = encoder_of("chatml llava");
    // The space at the end of the prompt joins the next word.
    let row = encode(&encoder, &plain(0, "A small brown ", "dog", "cat"));
    assert!(row.seam);
    assert_eq!(row.encoded.prompt.ids, encoder.tokenizer().encode_with_spans("A small brown ").unwrap().0);
    assert_eq!(counted_text(&encoder, &row.encoded.answers[0]), "dog<|im_end|>");
}

#[test]
fn images_that_nothing_marks_come_before_the_first_text_of_the_user() {
    let encoder = encoder_of("llava-1.5 legacy");
    let marked = [Message { role: "user".into(), content: vec![Part::Image, Part::Text("Is it red?".into())] }];
    let answers = [&[said("No.")], &[said("Yes.")]];
    let [by_part, by_nothing, by_text] = [&marked[..], &[user("Is it red?")], &[user("<image>\nIs it red?")]]
        .map(|prompt| encode(&encoder, &chat(1, prompt, answers[0], answers[1])).encoded);
    assert_eq!(by_part, by_nothing);
    assert_eq!(by_part.prompt.images.len(), 1);
    assert_eq!(by_part.prompt, by_text.prompt);
}

#[test]
fn an_image_in_a_response_is_a_slot_that_does_not_count() {
    let encoder = encoder_of("llava-1.5 legacy");
    let row = encode(&encoder, &plain(3, "USER: <image>\nDraw. ASSISTANT:", "Here: <image>", "There: <image>"));
    let chosen = &row.encoded.answers[0];
    assert_eq!(chosen.images.len(), 1);
    let slot = chosen.images[0];
    assert_eq!((slot.len, slot.image), (4, 1));
    assert_eq!(row.encoded.answers[1].images[0].image, 2);
    assert!(chosen.counted[slot.start..slot.start + 4].iter().all(|counted| !counted));
}

#[test]
fn rows_that_cannot_be_used_are_named() {
    let encoder = encoder_of("llava-1.5 legacy");
    let case = |example: &Example, expected: &str| {
        let error = refused(&encoder, example);
        assert!(error.starts_with("pairs.jsonl line 7: ") && error.contains(expected), "{error}");
    };
    case(&plain(1, "<image> <image> x:", "a", "b"), "2 image mark(s) in `prompt`, but 1 image(s)");
    case(&plain(0, "<image> x:", "a", "b"), "1 image mark(s) in `prompt`, but 0 image(s)");
    case(&plain(1, "x:", "a", "b"), "0 image mark(s) in `prompt`, but 1 image(s)");
    case(&plain(1, "<image>", "a", "b<image>"), "2 image mark(s) in prompt and answers, but 1 image(s)");
    case(&plain(0, " \n", "a", "b"), "`prompt` is empty");
    case(&chat(0, &[], &[said("a")], &[said("b")]), "`prompt` is empty");
    case(&plain(0, "x", " ", "b"), "`chosen` is empty");
    case(&chat(0, &[user("x")], &[said("a")], &[said("")]), "`rejected` is empty");
    case(&chat(0, &[user("x")], &[said("a")], &[said("a")]), "`chosen` and `rejected` are the same text");
    let mut mixed = plain(0, "x", "a", "b");
    mixed.answers[0].response = Response::Messages(vec![said("a")]);
    case(&mixed, "`prompt` is text, but `chosen` is a list of messages");

    let text_only = encoder_of("llama legacy false");
    assert!(refused(&text_only, &plain(1, "<image> x", "a", "b")).contains("the model takes none"));
    let two_users = chat(0, &[user("x"), user("y")], &[said("a")], &[said("b")]);
    let error = refused(&text_only, &two_users);
    assert!(error.starts_with("pairs.jsonl line 7: ") && error.contains("roles must alternate"), "{error}");
    let small = Encoder { vocab_size: 300, ..encoder_of("chatml llava") };
    assert!(
        refused(&small, &plain(0, "What is in the picture", "a", "b")).contains("beyond the model's 300 embeddings")
    );
}

#[test]
fn an_overlong_row_is_refused_or_its_responses_are_cut() {
    let encoder = encoder_of("llava-1.5 legacy");
    let row = plain(1, "USER: <image>\nIs there a dog? ASSISTANT:", "No, it is a cat.", "A dog.");
    let whole = encode(&encoder, &row).encoded;
    let prompt = whole.prompt.ids.len();
    let length = prompt + whole.answers[0].ids.len();
    let error = encoder.encode(&row, Some(length - 1), Overlong::Refuse).unwrap_err().to_string();
    assert!(error.contains(&format!("the row is {length} tokens long, `max_length` is {}", length - 1)), "{error}");
    assert!(error.contains("truncation_mode: keep_start"), "{error}");
    assert!(!encoder.encode(&row, Some(length), Overlong::ShortenResponse).unwrap().shortened);
    let cut = encoder.encode(&row, Some(prompt + 2), Overlong::ShortenResponse).unwrap();
    assert!(cut.shortened);
    assert_eq!(cut.encoded.prompt, whole.prompt);
    assert_eq!(cut.encoded.answers[0].ids, whole.answers[0].ids[..2]);
    let error = encoder.encode(&row, Some(prompt), Overlong::ShortenResponse).unwrap_err().to_string();
    assert!(error.contains("leaves nothing of a response"), "{error}");
    let alike = plain(0, "USER:", "No, a dog.", "No, a cat.");
    let error = encoder.encode(&alike, Some(4), Overlong::ShortenResponse).unwrap_err().to_string();
    assert!(error.contains("cut to `max_length`, `chosen` and `rejected` are the same"), "{error}");
}

proptest! {
    #[test]
    fn a_cut_never_enters_an_image_and_never_touches_the_prompt(
        prompt in 1usize..6, runs in prop::collection::vec((0usize..4, 1usize..5), 1..4), limit in 0usize..40
    ) {
        let row = RowId { file: std::sync::Arc::from(Path::new("x.json")), row: 1 };
        let prompt = Tokens { ids: vec![1; prompt], counted: vec![false; prompt], ..Tokens::default() };
        let mut answer = Tokens::default();
        for (i, (text, len)) in runs.iter().enumerate() {
            answer.turns.push(answer.ids.len()..answer.ids.len() + text);
            answer.ids.extend(vec![2; *text]);
            answer.counted.extend(vec![true; *text]);
            answer.images.push(ImageSlot { start: answer.ids.len(), len: *len, image: i });
            answer.ids.extend(vec![9; *len]);
            answer.counted.extend(vec![false; *len]);
        }
        let before = answer.clone();
        let mut answers = [answer];
        let length = prompt.ids.len() + before.ids.len();
        match shorten(&row, &prompt, &mut answers, limit, Overlong::ShortenResponse) {
            Err(_) => prop_assert!(length > limit),
            Ok(cut) => {
                let [after] = answers;
                prop_assert_eq!(cut, length > limit);
                prop_assert!(prompt.ids.len() + after.ids.len() <= limit);
                prop_assert_eq!(&after.ids[..], &before.ids[..after.ids.len()]);
                prop_assert_eq!(after.ids.len(), after.counted.len());
                prop_assert!(!cut || after.counted.contains(&true));
                let images = after.ids.iter().filter(|id| **id == 9).count();
                let spoken = after.turns.iter().flat_map(|turn| turn.clone());
                let counted = (0..after.ids.len()).filter(|&i| after.counted[i]);
                prop_assert!(spoken.eq(counted));
                prop_assert_eq!(images, after.images.iter().map(|slot| slot.len).sum::<usize>());
            }
        }
    }
}

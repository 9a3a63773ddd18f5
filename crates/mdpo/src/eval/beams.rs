//! Beam search over one question, the part without a model: which answers go on and which have ended.
//!
//! Follows `_beam_search` of transformers 5.23, number for number: scores are f32, an answer that ends is a result only if it is among the
//! `num_beams` likeliest continuations, and results are compared by their score over length to the power of `length_penalty`. There, a batch
//! goes on until all of its questions are done; here each ends for itself, which gives the same answers.

use super::decoding::{Beams, EarlyStopping};

/// The state of one search.
#[derive(Debug)]
pub(super) struct BeamSearch {
    settings: Beams,
    /// The most tokens an answer may have.
    room: usize,
    /// Summed log-prob of each running answer, the best first; one at the start.
    scores: Vec<f32>,
    /// Ended answers with their final score, the best first, at most as many as beams.
    ended: Vec<(Vec<u32>, f32)>,
}

/// A running answer and one token more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Continuation {
    /// Which running answer.
    pub parent: usize,
    /// The token.
    pub id: u32,
    /// Summed log-prob with it.
    pub score: f32,
}

/// What comes after a step.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// These run on.
    Running(Vec<Continuation>),
    /// The search is over, with this answer.
    Ended(Vec<u32>),
}

impl Beams {
    /// How many of the likeliest continuations a step looks at: at least as many as beams go on, however many of them end.
    pub(super) fn looked_at(&self, stop_ids: usize) -> usize {
        (1 + stop_ids).max(2) * self.count
    }
}

impl BeamSearch {
    pub fn new(settings: Beams, room: usize) -> Self {
        BeamSearch { settings, room, scores: vec![0.0], ended: Vec::new() }
    }

    /// Takes a step. `running` are the answers so far, and `likeliest` of each its likeliest next tokens with their log-probs, as many as a step
    /// looks at (or the vocabulary has), in the order of `running`.
    pub fn step(&mut self, running: &[&[u32]], likeliest: &[Vec<(u32, f32)>], stop: &[u32]) -> Next {
        let beams = self.settings.count;
        let mut all: Vec<Continuation> = Vec::new();
        for (parent, (tokens, score)) in likeliest.iter().zip(&self.scores).enumerate() {
            all.extend(tokens.iter().map(|&(id, log_prob)| Continuation { parent, id, score: log_prob + score }));
        }
        // Stable, so that of equals the one that stands first in the logits comes first.
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all.truncate(self.settings.looked_at(stop.len()));

        let length = running.first().map_or(0, |ids| ids.len()) + 1;
        let ends = |next: &Continuation| length >= self.room || stop.contains(&next.id);
        let normalizer = (length as f64).powf(self.settings.length_penalty) as f32;
        for next in all.iter().take(beams).filter(|next| ends(next)) {
            let ids = [running[next.parent], &[next.id]].concat();
            self.ended.push((ids, next.score / normalizer));
        }
        self.ended.sort_by(|a, b| b.1.total_cmp(&a.1));
        self.ended.truncate(beams);

        let going: Vec<Continuation> = all.iter().filter(|next| !ends(next)).take(beams).copied().collect();
        self.scores = going.iter().map(|next| next.score).collect();
        match self.is_over(length) {
            true => Next::Ended(self.ended.drain(..).next().map_or(Vec::new(), |(ids, _)| ids)),
            false => Next::Running(going),
        }
    }

    fn is_over(&self, length: usize) -> bool {
        let Some(&best) = self.scores.first() else { return true };
        let Beams { count, length_penalty, early_stopping } = self.settings;
        let Some((_, worst)) = self.ended.last().filter(|_| self.ended.len() == count) else { return false };
        let hoped = match early_stopping {
            EarlyStopping::Yes => return true,
            EarlyStopping::Never if length_penalty > 0.0 => self.room,
            EarlyStopping::Heuristic | EarlyStopping::Never => length,
        };
        best / (hoped as f64).powf(length_penalty) as f32 <= *worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: u32 = 9;

    fn search(early_stopping: EarlyStopping, length_penalty: f64) -> BeamSearch {
        BeamSearch::new(Beams { count: 2, length_penalty, early_stopping }, 4)
    }

    /// Runs a search over a model whose log-probs depend on the last token alone.
    fn run(mut search: BeamSearch, model: impl Fn(Option<u32>) -> Vec<(u32, f32)>) -> (Vec<u32>, usize) {
        let (mut running, mut steps) = (vec![Vec::<u32>::new()], 0);
        loop {
            steps += 1;
            let likeliest: Vec<_> = running.iter().map(|ids| model(ids.last().copied())).collect();
            let ids: Vec<&[u32]> = running.iter().map(Vec::as_slice).collect();
            match search.step(&ids, &likeliest, &[STOP]) {
                Next::Ended(ids) => return (ids, steps),
                Next::Running(next) => {
                    running = next.iter().map(|next| [&running[next.parent][..], &[next.id]].concat()).collect();
                }
            }
        }
    }

    #[test]
    fn a_search_finds_what_greedy_choice_walks_past() {
        // 1 is the likelier start, but what follows 2 is certain.
        let model = |last: Option<u32>| match last {
            None => vec![(1, -0.6), (2, -0.9), (3, -3.0), (STOP, -5.0)],
            Some(1) => vec![(1, -1.2), (2, -1.2), (3, -1.3), (STOP, -2.0)],
            _ => vec![(STOP, -0.01), (1, -5.0), (2, -6.0), (3, -7.0)],
        };
        assert_eq!(run(search(EarlyStopping::Heuristic, 0.0), model).0, [2, STOP]);
    }

    #[test]
    fn it_ends_when_its_rule_says_so() {
        // Ending grows less likely with every token, going on is nearly free.
        let model = |last: Option<u32>| match last {
            None => vec![(1, -0.1), (STOP, -2.5), (2, -4.0), (3, -5.0)],
            Some(_) => vec![(1, -0.1), (STOP, -2.5), (2, -6.0), (3, -7.0)],
        };
        let (yes, early) = run(search(EarlyStopping::Yes, 1.0), model);
        let (never, late) = run(search(EarlyStopping::Never, 1.0), model);
        assert!(early < late && late == 4, "{early} {late}");
        assert_eq!((yes, never), (vec![1, STOP], vec![1; 4]));
        // Without a penalty no longer answer can be better than one that has ended.
        assert_eq!(
            run(search(EarlyStopping::Never, 0.0), |_| vec![(STOP, -0.1), (1, -3.0), (2, -3.1), (3, -4.0)]).1,
            2
        );
    }
}

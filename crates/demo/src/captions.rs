//! What is said about a scene: the true caption, and one with a single mistake.
//!
//! Objects are named in the order of [`Object`], pair by pair and anchor first, in true and false captions alike: the order
//! gives nothing away, and the habit "dog → bone" is the strongest that captions can teach.

use crate::address::Purpose;
use crate::scenes::{Object, Scene};
use rand::{Rng, RngExt, seq::IndexedRandom};

/// What the model is asked about every picture.
pub const QUESTION: &str = "describe the picture .";

/// What is wrong in a rejected caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// It names this object, which is not there.
    Added(Object),
    /// It does not name this object, which is there.
    LeftOut(Object),
}

/// Which mistakes rejected captions make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Always an added object: an absent partner where there is one, else any absent object. The longer caption is always
    /// the wrong one, which a model can learn without looking.
    OneSided,
    /// Some anchor's partner is added where it is absent and left out where it is present. Where partners come along half of
    /// the time, the text of a pair says nothing about which of its captions is right.
    Balanced,
}

/// "there is a dog , a bone and a car ." for any number of objects but none, in the order given.
pub fn caption(objects: &[Object]) -> String {
    let named: Vec<String> = objects.iter().map(|object| format!("a {}", object.name())).collect();
    match named.split_last() {
        Some((last, first)) if !first.is_empty() => format!("there is {} and {last} .", first.join(" , ")),
        Some((only, _)) => format!("there is {only} ."),
        None => "there is nothing .".to_owned(),
    }
}

/// The objects a caption names, in its order; words that form no caption name nothing.
pub fn named(caption: &str) -> Vec<Object> {
    let words: Vec<&str> = caption.split_whitespace().collect();
    let named = words.split(|word| matches!(*word, "a" | "," | "and" | "." | "is" | "there"));
    named.filter_map(|name| Object::named(&name.join(" "))).collect()
}

/// The words of captions and questions, in lower case.
pub fn words() -> Vec<&'static str> {
    let mut words = vec![",", ".", "?", ":", "there", "is", "a", "and", "nothing", "describe", "the", "picture"];
    words.extend(["in", "yes", "no", "not", "image", "what", "how", "many", "it", "user", "assistant", "system"]);
    words.extend(Object::all().flat_map(|object| object.name().split(' ')));
    words
}

/// A scene's captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Names exactly the objects of the scene.
    pub chosen: String,
    /// Names them with one mistake.
    pub rejected: String,
    /// The mistake.
    pub mistake: Mistake,
}

impl Pair {
    /// The captions of a scene, a function of its address.
    pub fn about(scene: &Scene, pairing: Pairing) -> Self {
        let mut rng = scene.address.rng(Purpose::Mistake);
        let objects = scene.objects();
        let mistake = match pairing {
            Pairing::OneSided => Mistake::Added(absent(&objects, &mut rng)),
            Pairing::Balanced => {
                let partners: Vec<Object> = objects.iter().filter_map(|object| object.partner()).collect();
                match partners.choose(&mut rng) {
                    Some(&partner) if objects.contains(&partner) => Mistake::LeftOut(partner),
                    Some(&partner) => Mistake::Added(partner),
                    None => Mistake::Added(absent(&objects, &mut rng)),
                }
            }
        };
        let mut wrong = objects.clone();
        match mistake {
            Mistake::Added(object) => wrong.push(object),
            Mistake::LeftOut(object) => wrong.retain(|&other| other != object),
        }
        wrong.sort();
        Self { chosen: caption(&objects), rejected: caption(&wrong), mistake }
    }
}

/// An object that is not there: a missing partner where there is one.
fn absent(objects: &[Object], rng: &mut impl Rng) -> Object {
    let partners: Vec<Object> = objects.iter().filter_map(|o| o.partner()).filter(|o| !objects.contains(o)).collect();
    let others: Vec<Object> = Object::all().filter(|object| !objects.contains(object)).collect();
    let candidates = if partners.is_empty() { &others } else { &partners };
    candidates[rng.random_range(0..candidates.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, Split};
    use std::collections::HashMap;

    fn objects(names: &[&str]) -> Vec<Object> {
        names.iter().map(|name| Object::named(name).unwrap()).collect()
    }

    #[test]
    fn captions_read_as_they_should() {
        assert_eq!(caption(&objects(&["dog"])), "there is a dog .");
        assert_eq!(caption(&objects(&["car", "traffic light"])), "there is a car and a traffic light .");
        assert_eq!(caption(&objects(&["dog", "bone", "car"])), "there is a dog , a bone and a car .");
        assert_eq!(named("there is nothing ."), []);
        assert_eq!(named("there is a light and a traffic dog ."), []);
    }

    #[test]
    fn a_caption_names_exactly_the_objects_and_a_rejected_one_makes_one_mistake() {
        for (split, pairing) in Split::ALL.into_iter().flat_map(|s| [(s, Pairing::OneSided), (s, Pairing::Balanced)]) {
            for index in 0..500 {
                let scene = Scene::at(Address { seed: 3, split, index });
                let pair = Pair::about(&scene, pairing);
                assert_eq!(named(&pair.chosen), scene.objects());
                let (truth, told) = (scene.objects(), named(&pair.rejected));
                assert!(told.is_sorted());
                let without = |all: &[Object], but: &[Object]| -> Vec<Object> {
                    all.iter().filter(|object| !but.contains(object)).copied().collect()
                };
                let (absent, missing) = (without(&told, &truth), without(&truth, &told));
                match pair.mistake {
                    Mistake::Added(object) => assert!(absent == [object] && missing.is_empty()),
                    Mistake::LeftOut(object) => {
                        assert!(pairing == Pairing::Balanced && absent.is_empty() && missing == [object])
                    }
                }
                let broken = truth.iter().filter_map(|o| o.partner()).any(|partner| !truth.contains(&partner));
                if let (Mistake::Added(object), true) = (pair.mistake, broken) {
                    assert!(
                        truth.iter().any(|anchor| anchor.partner() == Some(object)),
                        "the absent partner comes first"
                    );
                }
            }
        }
    }

    /// In balanced pairs the better of two captions cannot be told from the text: over many scenes, each ordered pair of
    /// shapes (how many anchors, partners and lone partners either caption names) comes as often one way round as the other.
    #[test]
    fn the_text_of_balanced_pairs_gives_nothing_away() {
        let shape = |caption: &str| {
            let objects = named(caption);
            let paired =
                objects.iter().filter(|o| o.partner().is_some_and(|partner| objects.contains(&partner))).count();
            (objects.len(), objects.iter().filter(|object| object.partner().is_some()).count(), paired)
        };
        let mut seen: HashMap<_, i64> = HashMap::new();
        for index in 0..20_000 {
            let pair = Pair::about(&Scene::at(Address { seed: 11, split: Split::Pairs, index }), Pairing::Balanced);
            *seen.entry((shape(&pair.chosen), shape(&pair.rejected))).or_default() += 1;
        }
        for (&(chosen, rejected), &count) in &seen {
            let mirrored = seen.get(&(rejected, chosen)).copied().unwrap_or(0);
            let spread = ((count + mirrored) as f64).sqrt();
            assert!(
                ((count - mirrored) as f64).abs() < 4.0 * spread,
                "{chosen:?} over {rejected:?}: {count}, reversed {mirrored}"
            );
        }
    }
}

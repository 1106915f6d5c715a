//! Legs that are fused: against a naive reading, alone, by an index, and asked for wrongly.

use super::search;
use crate::help::*;
use crate::precedent::{record, remove, small, time};
use crate::vectors::{dice, embed, floats, space};
use crate::world::{As, World, object, wrong_fields};
use casebook::pb;
use pb::{ResourceKind, SearchMethod};
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::collections::HashMap;

/// An embedding of something.
pub fn of(kind: ResourceKind, id: &str, embedding_id: &str, values: &[f32]) -> pb::Embedding {
    pb::Embedding {
        id: embedding_id.into(),
        subject: Some(reference(kind, id, 0)),
        vector: floats(values),
        ..Default::default()
    }
}

pub fn near(space: &str, values: &[f32]) -> Option<pb::VectorLeg> {
    Some(pb::VectorLeg {
        vector_space_id: space.into(),
        vector: floats(values),
        ..Default::default()
    })
}

pub fn find(space: &str, values: &[f32]) -> pb::FindPrecedentsRequest {
    pb::FindPrecedentsRequest { near: near(space, values), ..Default::default() }
}

pub fn ids(answer: &pb::FindPrecedentsResponse) -> Vec<String> {
    answer.hits.iter().map(|hit| hit.precedent.as_ref().unwrap().id.clone()).collect()
}

pub fn refs(answer: &pb::SearchResponse) -> Vec<String> {
    answer.hits.iter().map(|hit| hit.r#ref.as_ref().unwrap().id.clone()).collect()
}

const WORDS: [&str; 6] = ["heron", "stork", "grebe", "lake", "shore", "reed"];

/// A few of the words, often none of those that are looked for.
fn text(dice: &mut StdRng) -> String {
    let n = dice.random_range(0..5);
    (0..n).map(|_| WORDS[dice.random_range(0..WORDS.len())]).collect::<Vec<_>>().join(" ")
}

/// Small whole numbers, so that both sides reckon exactly, and many distances are the same.
fn point(dice: &mut StdRng) -> Vec<f32> {
    (0..3).map(|_| f32::from(dice.random_range(-2_i8..=2))).collect()
}

/// Something that can be found.
struct Thing {
    kind: ResourceKind,
    id: String,
    uid: String,
    group: usize,
    case: usize,
    occurred: i64,
    /// Its embeddings: id and vector.
    points: Vec<(String, Vec<f32>)>,
}

/// Precedents and claims with words, cases, groups and none to three embeddings each.
async fn things(who: &As, dice: &mut StdRng) -> Vec<Thing> {
    let mut things = Vec::new();
    for n in 0..150_usize {
        let (group, case, occurred) = (n % 5, dice.random_range(0..40), dice.random_range(0..50));
        let (id, content) = (format!("t{n:03}"), text(dice));
        let metadata = Some(object(&[("group", &format!("g{group}"))]));
        let (kind, uid) = if n % 3 == 0 {
            let claim = pb::Claim {
                content: if content.is_empty() { "nothing".into() } else { content },
                metadata,
                ..Default::default()
            };
            let request = pb::CreateClaimRequest {
                claim_id: id.clone(),
                claim: Some(claim),
                ..Default::default()
            };
            let made = ok!(who.claims().create_claim(request)).claim.unwrap();
            (ResourceKind::Claim, made.meta.unwrap().uid)
        } else {
            let precedent = pb::Precedent {
                summary: content,
                metadata,
                input: Some(object(&[("case", &case.to_string())])),
                occur_time: time(1_700_000_000 + occurred),
                ..small()
            };
            let request = record(&id, precedent);
            let made = ok!(who.precedents().create_precedent(request)).precedent.unwrap();
            (ResourceKind::Precedent, made.meta.unwrap().uid)
        };
        let points: Vec<_> =
            (0..dice.random_range(0..4)).map(|k| (format!("{id}-{k}"), point(dice))).collect();
        things.push(Thing { kind, id, uid, group, case, occurred, points });
    }
    let all: Vec<_> = things
        .iter()
        .flat_map(|thing| thing.points.iter().map(|(id, at)| of(thing.kind, &thing.id, id, at)))
        .collect();
    embed(who, "s", &all).await;
    // Of what is not recorded, of another kind under the same id, and of nothing.
    let strays = [
        of(ResourceKind::Precedent, "gone", "stray-0", &[0.0; 3]),
        of(ResourceKind::Decision, "t001", "stray-1", &[0.0; 3]),
        pb::Embedding { subject: None, ..of(ResourceKind::Claim, "", "stray-2", &[0.0; 3]) },
    ];
    embed(who, "s", &strays).await;
    things
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from((a - b) * (a - b)));
    squares.sum::<f64>().sqrt()
}

/// Ids by their places from 1 on.
fn ranks<'a>(ordered: impl IntoIterator<Item = &'a str>, limit: usize) -> HashMap<&'a str, i32> {
    ordered.into_iter().take(limit).zip(1..).collect()
}

/// What is asked, in words of both.
struct Question {
    kinds: Vec<ResourceKind>,
    text: String,
    target: Option<Vec<f32>>,
    case: Option<usize>,
    group: Option<usize>,
    top_k: usize,
    fusion: pb::Fusion,
}

impl Question {
    fn draw(dice: &mut StdRng, kinds: &[ResourceKind], by_case: bool) -> Self {
        let top_k = dice.random_range(1..=30);
        let mut weight =
            || dice.random_bool(0.5).then(|| f64::from(dice.random_range(1..=8_i32)) / 4.0);
        let (text_weight, vector_weight) = (weight(), weight());
        let exact_weight = if by_case { weight() } else { None };
        let fusion = pb::Fusion {
            rrf_k: dice.random_range(0..=80),
            text_weight,
            vector_weight,
            exact_weight,
            leg_limit: if dice.random_bool(0.5) { 0 } else { dice.random_range(top_k..=60) },
        };
        let case = (by_case && dice.random_bool(0.6)).then(|| dice.random_range(0..40));
        let (mut words, mut target) = (text(dice), Some(point(dice)));
        if by_case && dice.random_bool(0.3) {
            target = None;
        }
        if dice.random_bool(0.3) {
            words.clear();
        }
        if words.is_empty() && case.is_none() {
            target = target.or_else(|| Some(point(dice)));
        }
        Self {
            kinds: kinds.to_vec(),
            text: words,
            target,
            case,
            group: dice.random_bool(0.5).then(|| dice.random_range(0..5)),
            top_k: top_k as usize,
            fusion,
        }
    }

    fn filter(&self) -> Option<pb::Selector> {
        expression(&self.group.map_or(String::new(), |group| format!("metadata.group = g{group}")))
    }

    /// What a reading of everything says: ids with their exact, text and vector ranks, their scores and distances. What
    /// words find comes from the search for words alone.
    async fn naively(
        &self,
        who: &As,
        things: &[Thing],
    ) -> Vec<(String, [i32; 3], f64, Option<f64>)> {
        let asked = things.iter().filter(|thing| {
            self.kinds.contains(&thing.kind) && self.group.is_none_or(|group| group == thing.group)
        });
        let asked: Vec<&Thing> = asked.collect();
        let usual = if self.target.is_some() { (4 * self.top_k).clamp(50, 1000) } else { 1000 };
        let limit = if self.fusion.leg_limit == 0 { usual } else { self.fusion.leg_limit as usize };

        let mut same: Vec<&Thing> = match self.case {
            Some(case) => asked.iter().filter(|thing| thing.case == case).copied().collect(),
            None => Vec::new(),
        };
        same.sort_by(|a, b| (b.occurred, &b.uid).cmp(&(a.occurred, &a.uid)));
        let exact = ranks(same.iter().map(|thing| thing.id.as_str()), limit);

        let worded = if self.text.is_empty() {
            Vec::new()
        } else {
            let request = pb::SearchRequest {
                kinds: self.kinds.iter().map(|kind| (*kind).into()).collect(),
                r#where: self.filter(),
                page: page(1000),
                ..search(&self.text)
            };
            refs(&ok!(who.search().search(request)))
        };
        let text = ranks(worded.iter().map(String::as_str), limit);

        let mut nearest: Vec<(f64, &str, &str)> = Vec::new();
        for thing in &asked {
            let target = self.target.as_ref();
            let far = target.and_then(|target| {
                let all = thing.points.iter().map(|(_, at)| distance(at, target));
                all.min_by(f64::total_cmp)
            });
            nearest.extend(far.map(|far| (far, thing.uid.as_str(), thing.id.as_str())));
        }
        nearest.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        let vector = ranks(nearest.iter().map(|(_, _, id)| *id), limit);
        let far: HashMap<&str, f64> = nearest.iter().map(|(far, _, id)| (*id, *far)).collect();

        let pb::Fusion { rrf_k, text_weight, vector_weight, exact_weight, .. } = self.fusion;
        let k = if rrf_k == 0 { 60.0 } else { f64::from(rrf_k) };
        let mut fused = Vec::new();
        for thing in asked {
            let of = |leg: &HashMap<&str, i32>| leg.get(thing.id.as_str()).copied().unwrap_or(0);
            let ranks = [of(&exact), of(&text), of(&vector)];
            if ranks == [0; 3] {
                continue;
            }
            let weights = [exact_weight, text_weight, vector_weight];
            let parts = ranks.iter().zip(weights).filter(|(rank, _)| **rank > 0);
            let score: f64 =
                parts.map(|(rank, weight)| weight.unwrap_or(1.0) / (k + f64::from(*rank))).sum();
            let far = far.get(thing.id.as_str()).copied().filter(|_| ranks[2] > 0);
            fused.push((&thing.uid, thing.id.clone(), ranks, score, far));
        }
        fused.sort_by(|a, b| {
            let last = (a.2[0] == 0).cmp(&(b.2[0] == 0));
            last.then_with(|| b.3.total_cmp(&a.3)).then_with(|| a.0.cmp(b.0))
        });
        fused.truncate(self.top_k);
        fused.into_iter().map(|(_, id, ranks, score, far)| (id, ranks, score, far)).collect()
    }
}

#[track_caller]
fn same(
    found: &[(String, [i32; 3], f64, Option<f64>)],
    expected: &[(String, [i32; 3], f64, Option<f64>)],
    question: &Question,
) {
    // Both add up in one order, but what PostgreSQL calls equal must be equal here.
    let told = |all: &[(String, [i32; 3], f64, Option<f64>)]| -> Vec<_> {
        all.iter().map(|(id, ranks, _, far)| (id.clone(), *ranks, *far)).collect()
    };
    let Question { text, target, case, group, top_k, fusion, .. } = question;
    assert_eq!(
        told(found),
        told(expected),
        "{text:?} {target:?} {case:?} {group:?} {top_k} {fusion:?}"
    );
    for (a, b) in found.iter().zip(expected) {
        assert!((a.2 - b.2).abs() < 1e-15, "{a:?} {b:?}");
    }
}

/// 1,200 searches with filters, weights, limits and many ties, against a naive reading; some have one leg only.
#[tokio::test]
async fn fused_searches_are_what_a_naive_reading_says() {
    let mut dice = dice();
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 3).await;
    let things = things(&who, &mut dice).await;
    for _ in 0..700 {
        let asked = Question::draw(&mut dice, &[ResourceKind::Precedent], true);
        let request = pb::FindPrecedentsRequest {
            input: asked.case.map(|case| object(&[("case", &case.to_string())])),
            text: asked.text.clone(),
            r#where: asked.filter(),
            top_k: asked.top_k as i32,
            near: asked.target.as_ref().and_then(|target| near("s", target)),
            fusion: Some(asked.fusion),
            ..Default::default()
        };
        let hits = ok!(who.precedents().find_precedents(request)).hits;
        let found = hits.into_iter().map(|hit| {
            let ranks = [hit.exact_rank, hit.text_rank, hit.vector_rank];
            assert_eq!(hit.vector_rank > 0, !hit.embedding_id.is_empty());
            assert_eq!(hit.vector_score, hit.distance.map(|far| 1.0 / (1.0 + far)));
            (hit.precedent.unwrap().id, ranks, hit.score, hit.distance)
        });
        same(&found.collect::<Vec<_>>(), &asked.naively(&who, &things).await, &asked);
    }
    use ResourceKind::{Claim, Precedent};
    for n in 0..500 {
        let kinds: &[ResourceKind] =
            [&[Claim, Precedent][..], &[Claim], &[Precedent], &[Precedent, Claim]][n % 4];
        let asked = Question::draw(&mut dice, kinds, false);
        let request = pb::SearchRequest {
            kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
            r#where: asked.filter(),
            page: page(asked.top_k as i32),
            near: asked.target.as_ref().and_then(|target| near("s", target)),
            fusion: Some(asked.fusion),
            ..search(&asked.text)
        };
        let found = ok!(who.search().search(request)).hits.into_iter().map(|hit| {
            let ranks = [0, hit.text_rank, hit.vector_rank];
            assert_eq!(hit.text_rank > 0, hit.text_score > 0.0);
            (hit.r#ref.unwrap().id, ranks, hit.score, hit.distance)
        });
        same(&found.collect::<Vec<_>>(), &asked.naively(&who, &things).await, &asked);
    }
    world.close().await;
}

#[tokio::test]
async fn a_vector_finds_what_its_embeddings_are_of() {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 2).await;
    for id in ["a", "b", "c"] {
        let precedent = pb::Precedent { summary: format!("heron {id}"), ..small() };
        ok!(who.precedents().create_precedent(record(id, precedent)));
    }
    let kind = ResourceKind::Precedent;
    let all = [
        of(kind, "a", "far", &[9.0, 0.0]),
        of(kind, "a", "close", &[1.0, 0.0]),
        of(kind, "b", "b", &[2.0, 0.0]),
    ];
    embed(&who, "s", &all).await;
    let answer = ok!(who
        .precedents()
        .find_precedents(pb::FindPrecedentsRequest { explain: true, ..find("s", &[0.0, 0.0]) }));
    let told: Vec<_> = answer
        .hits
        .iter()
        .map(|hit| (hit.embedding_id.as_str(), hit.vector_rank, hit.distance, hit.vector_score))
        .collect();
    assert_eq!(told, [("close", 1, Some(1.0), Some(0.5)), ("b", 2, Some(2.0), Some(1.0 / 3.0))]);
    let [leg] = &answer.legs[..] else { panic!("{:?}", answer.legs) };
    assert_eq!((leg.leg.as_str(), leg.method()), ("vector", SearchMethod::Exact));
    assert_eq!((leg.limit, leg.hits, leg.candidates), (50, 2, 3));
    assert!(leg.description.starts_with("all 3 embeddings of vector_space \"s\""), "{leg:?}");

    // Like one of its own, which itself finds nothing.
    let like = |id: &str| pb::FindPrecedentsRequest {
        near: Some(pb::VectorLeg {
            vector_space_id: "s".into(),
            like_embedding_id: id.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(ids(&ok!(who.precedents().find_precedents(like("b")))), ["a"]);
    let again = ok!(who.precedents().find_precedents(like("close")));
    assert_eq!(
        (ids(&again), again.hits[1].embedding_id.as_str()),
        (vec!["b".into(), "a".into()], "far")
    );

    // All three legs, told one by one, with passages and fields.
    let asked = pb::SearchRequest {
        near: near("s", &[0.0, 0.0]),
        explain: true,
        highlight: true,
        read_mask: mask(&["summary"]),
        ..search("heron")
    };
    let answer = ok!(who.search().search(asked.clone()));
    assert_eq!(refs(&answer), ["a", "b", "c"]);
    assert_eq!(answer.hits[2].highlights, ["**heron**"]);
    assert_eq!(answer.hits[0].fields, Some(object(&[("summary", "heron a")])));
    assert_eq!((answer.hits[2].vector_rank, answer.hits[2].distance), (0, None));
    let legs: Vec<_> = answer.legs.iter().map(|leg| (leg.leg.as_str(), leg.hits)).collect();
    assert_eq!(legs, [("text", 3), ("vector", 2)]);
    assert_eq!(answer.page.unwrap().next_page_token, "");
    // Only scores that are good enough: those that both legs have.
    let most = pb::SearchRequest { min_score: Some(1.5 / 61.0), ..asked };
    assert_eq!(refs(&ok!(who.search().search(most))), ["a", "b"]);

    // What is deleted is not found by an embedding that is left; and comes back with it.
    ok!(who.precedents().delete_precedent(remove("a")));
    assert_eq!(ids(&ok!(who.precedents().find_precedents(find("s", &[0.0, 0.0])))), ["b"]);
    ok!(who.precedents().undelete_precedent(crate::precedent::restore("a")));
    assert_eq!(ids(&ok!(who.precedents().find_precedents(find("s", &[0.0, 0.0])))), ["a", "b"]);
    world.close().await;
}

#[tokio::test]
async fn bad_legs_are_refused_by_field() {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 2).await;
    let good = || near("s", &[1.0, 0.0]).unwrap();
    let fusion = |fusion| (good(), Some(fusion));
    let params = |params| (pb::VectorLeg { params: Some(params), ..good() }, None);
    let both = pb::VectorLeg { like_embedding_id: "e".into(), ..good() };
    use pb::{Fusion, SearchParams, VectorLeg};
    let wrong = [
        (
            "near.vector",
            "DIMENSION_MISMATCH",
            (VectorLeg { vector: floats(&[1.0]), ..good() }, None),
        ),
        (
            "near.vector",
            "VECTOR_INVALID",
            (VectorLeg { vector: floats(&[f32::NAN, 0.0]), ..good() }, None),
        ),
        ("near.vector", "FIELD_INVALID", (VectorLeg { vector: None, ..good() }, None)),
        (
            "near.vector",
            "FIELD_INVALID",
            (VectorLeg { vector: Some(pb::Vector::default()), ..good() }, None),
        ),
        ("near.like_embedding_id", "FIELD_INVALID", (both, None)),
        (
            "near.vector_space_id",
            "FIELD_INVALID",
            (VectorLeg { vector_space_id: "".into(), ..good() }, None),
        ),
        (
            "near.params.candidates",
            "FIELD_INVALID",
            params(SearchParams { candidates: 49, ..Default::default() }),
        ),
        (
            "near.params.ef_search",
            "FIELD_INVALID",
            params(SearchParams { ef_search: -1, ..Default::default() }),
        ),
        (
            "fusion.text_weight",
            "FIELD_INVALID",
            fusion(Fusion { text_weight: Some(-1.0), ..Default::default() }),
        ),
        (
            "fusion.vector_weight",
            "FIELD_INVALID",
            fusion(Fusion { vector_weight: Some(f64::NAN), ..Default::default() }),
        ),
        (
            "fusion.vector_weight",
            "FIELD_INVALID",
            fusion(Fusion { vector_weight: Some(1001.0), ..Default::default() }),
        ),
        (
            "fusion.leg_limit",
            "FIELD_INVALID",
            fusion(Fusion { leg_limit: 1001, ..Default::default() }),
        ),
        (
            "fusion.leg_limit",
            "FIELD_INVALID",
            fusion(Fusion { leg_limit: 9, ..Default::default() }),
        ),
        (
            "fusion.leg_limit",
            "FIELD_INVALID",
            fusion(Fusion { leg_limit: -1, ..Default::default() }),
        ),
        ("fusion.rrf_k", "FIELD_INVALID", fusion(Fusion { rrf_k: 1001, ..Default::default() })),
        (
            "fusion",
            "FIELD_INVALID",
            fusion(Fusion { vector_weight: Some(0.0), ..Default::default() }),
        ),
    ];
    for (field, reason, (near, fusion)) in wrong {
        let find =
            pb::FindPrecedentsRequest { near: Some(near.clone()), fusion, ..Default::default() };
        let status = fails!(who.precedents().find_precedents(find), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [field]);
        let all =
            pb::SearchRequest { near: Some(near), fusion, page: page(10), ..Default::default() };
        let status = fails!(who.search().search(all), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [field]);
    }
    let nowhere = pb::VectorLeg { vector_space_id: "nowhere".into(), ..good() };
    let like = pb::VectorLeg { vector: None, like_embedding_id: "none".into(), ..good() };
    for near in [nowhere, like] {
        let find = pb::FindPrecedentsRequest { near: Some(near.clone()), ..Default::default() };
        fails!(who.precedents().find_precedents(find), NotFound, "NOT_FOUND");
        let all = pb::SearchRequest { near: Some(near), ..Default::default() };
        fails!(who.search().search(all), NotFound, "NOT_FOUND");
    }
    let token = |near| pb::SearchRequest {
        near,
        page: Some(pb::PageRequest { page_token: "x".into(), ..Default::default() }),
        ..search("heron")
    };
    let status = fails!(
        who.search().search(token(near("s", &[1.0, 0.0]))),
        InvalidArgument,
        "FIELD_INVALID"
    );
    assert_eq!(wrong_fields(&status), ["page.page_token"]);
    let alone = pb::SearchRequest { fusion: Some(Fusion::default()), ..search("heron") };
    let status = fails!(who.search().search(alone), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["fusion"]);
    let exact = pb::SearchRequest {
        near: near("s", &[1.0, 0.0]),
        fusion: Some(Fusion { exact_weight: Some(1.0), ..Default::default() }),
        ..search("heron")
    };
    let status = fails!(who.search().search(exact), InvalidArgument, "FIELD_INVALID");
    assert_eq!(wrong_fields(&status), ["fusion.exact_weight"]);
    let filter =
        pb::FindPrecedentsRequest { r#where: expression("colour = red"), ..find("s", &[1.0, 0.0]) };
    fails!(who.precedents().find_precedents(filter), InvalidArgument, "FILTER_INVALID");
    world.close().await;
}

#[tokio::test]
async fn no_leg_reaches_into_another_tenant() {
    let world = World::new().await;
    for tenant in ["alpha", "beta"] {
        world.tenant(tenant).await;
    }
    let (alpha, beta) = (world.as_tenant("alpha"), world.as_tenant("beta"));
    for (who, id) in [(&alpha, "mine"), (&beta, "theirs")] {
        space(who, "s", 2).await;
        let precedent = pb::Precedent { summary: "heron".into(), ..small() };
        ok!(who.precedents().create_precedent(record(id, precedent)));
        embed(who, "s", &[of(ResourceKind::Precedent, id, "e", &[1.0, 0.0])]).await;
    }
    // An embedding names a precedent that only the other tenant has.
    embed(&alpha, "s", &[of(ResourceKind::Precedent, "theirs", "stray", &[1.0, 0.0])]).await;
    space(&beta, "only", 2).await;
    for text in ["heron", ""] {
        let request = pb::FindPrecedentsRequest { text: text.into(), ..find("s", &[1.0, 0.0]) };
        assert_eq!(ids(&ok!(alpha.precedents().find_precedents(request.clone()))), ["mine"]);
        assert_eq!(ids(&ok!(beta.precedents().find_precedents(request))), ["theirs"]);
        let request = pb::SearchRequest { near: near("s", &[1.0, 0.0]), ..search(text) };
        assert_eq!(refs(&ok!(alpha.search().search(request.clone()))), ["mine"]);
        assert_eq!(refs(&ok!(beta.search().search(request))), ["theirs"]);
    }
    let request = find("only", &[1.0, 0.0]);
    fails!(alpha.precedents().find_precedents(request), NotFound, "NOT_FOUND");
    world.close().await;
}

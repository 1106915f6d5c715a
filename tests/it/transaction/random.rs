//! Random sequences of transactions against a model in memory that knows nothing of databases.

use super::execute;
use crate::claim::{claim, consensus, verification};
use crate::help::*;
use crate::world::{World, reason};
use casebook::pb;
use pb::execute_transaction_request::operation::Operation;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Handle;

/// Sequences in a run, spread over as many runners as there are callers.
const SEQUENCES: u32 = 2048;
const RUNNERS: u32 = 8;

/// A claim by a small number, or by the place of the operation that made it.
#[derive(Clone, Copy, Debug)]
enum Name {
    Id(u8),
    Made(usize),
}

#[derive(Clone, Debug)]
enum Op {
    /// None: the server chooses the id.
    CreateClaim(Option<u8>),
    UpdateClaim(Name, u8),
    DeleteClaim(Name, bool),
    Verify(Option<u8>, Name),
    Agree(Name),
    CreateRule(u8),
    UpdateRule(u8, u8),
    DeleteRule(u8),
}

#[derive(Clone, Debug)]
struct Planned {
    ops: Vec<Op>,
    rehearse: bool,
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![(0..3u8).prop_map(Name::Id), (0..6usize).prop_map(Name::Made)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::option::weighted(0.7, 0..3u8).prop_map(Op::CreateClaim),
        3 => (name(), any::<u8>()).prop_map(|(name, to)| Op::UpdateClaim(name, to)),
        2 => (name(), any::<bool>()).prop_map(|(name, lenient)| Op::DeleteClaim(name, lenient)),
        4 => (prop::option::weighted(0.4, 0..4u8), name()).prop_map(|(id, of)| Op::Verify(id, of)),
        2 => name().prop_map(Op::Agree),
        1 => (0..2u8).prop_map(Op::CreateRule),
        1 => (0..2u8, any::<u8>()).prop_map(|(id, to)| Op::UpdateRule(id, to)),
        1 => (0..2u8).prop_map(Op::DeleteRule),
    ]
}

fn sequence() -> impl Strategy<Value = Vec<Planned>> {
    let planned = (prop::collection::vec(op(), 1..7), prop::bool::weighted(0.1))
        .prop_map(|(ops, rehearse)| Planned { ops, rehearse });
    prop::collection::vec(planned, 1..5)
}

/// What there should be. Ids are those of the requests, or what the server answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Source and version.
    claims: BTreeMap<String, (String, i64)>,
    /// Ids, with the claim of each; those without an id of their own are counted.
    verifications: BTreeMap<String, String>,
    nameless: BTreeMap<String, i64>,
    agreed: BTreeSet<String>,
    rules: BTreeMap<String, (String, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    Exists,
    NotFound,
    /// It names no operation that made something.
    Nothing,
    /// A second deletion of an id.
    Twice,
}

/// The ids of one sequence are its own, so that all share a tenant.
struct Sequence {
    prefix: String,
}

impl Sequence {
    fn id(&self, kind: &str, n: u8) -> String {
        format!("{}-{kind}{n}", self.prefix)
    }

    /// What the request says: an id or `$n.id`.
    fn said(&self, name: Name) -> String {
        match name {
            Name::Id(n) => self.id("c", n),
            Name::Made(place) => format!("${place}.id"),
        }
    }

    fn operation(&self, op: &Op) -> Operation {
        let chosen = |kind, id: &Option<u8>| id.map_or_else(String::new, |n| self.id(kind, n));
        let rule = |id: &u8, name: String| pb::PolicyRule {
            id: self.id("r", *id),
            name,
            ..Default::default()
        };
        match op {
            Op::CreateClaim(id) => Operation::CreateClaim(pb::CreateClaimRequest {
                claim_id: chosen("c", id),
                claim: Some(claim("said")),
                ..Default::default()
            }),
            Op::UpdateClaim(name, to) => Operation::UpdateClaim(pb::UpdateClaimRequest {
                claim: Some(pb::Claim {
                    id: self.said(*name),
                    source: format!("s{to}"),
                    ..Default::default()
                }),
                update_mask: mask(&["source"]),
                options: None,
            }),
            Op::DeleteClaim(name, allow_missing) => {
                Operation::DeleteClaim(pb::DeleteClaimRequest {
                    claim_id: self.said(*name),
                    allow_missing: *allow_missing,
                    ..Default::default()
                })
            }
            Op::Verify(id, of) => Operation::CreateVerification(pb::CreateVerificationRequest {
                verification_id: chosen("v", id),
                verification: Some(verification(&self.said(*of), "f", 0.5)),
                options: None,
            }),
            Op::Agree(of) => Operation::CreateConsensus(pb::CreateConsensusRequest {
                consensus: Some(consensus(&self.said(*of), "majority")),
                ..Default::default()
            }),
            Op::CreateRule(id) => Operation::CreatePolicyRule(pb::CreatePolicyRuleRequest {
                policy_rule: Some(rule(id, "new".into())),
                ..Default::default()
            }),
            Op::UpdateRule(id, to) => Operation::UpdatePolicyRule(pb::UpdatePolicyRuleRequest {
                policy_rule: Some(rule(id, format!("n{to}"))),
                update_mask: mask(&["name"]),
                options: None,
            }),
            Op::DeleteRule(id) => Operation::DeletePolicyRule(pb::DeletePolicyRuleRequest {
                policy_rule_id: self.id("r", *id),
                ..Default::default()
            }),
        }
    }

    /// What should become of the transaction: the model after it, or the operation that is refused. `made` are the ids
    /// that the server chose, by place; before they are known they are made up, which changes no outcome.
    fn expect(
        &self,
        before: &Model,
        ops: &[Op],
        made: &BTreeMap<usize, String>,
    ) -> Result<Model, (usize, Refusal)> {
        let mut model = before.clone();
        // What each operation is about, for `$n.id`.
        let mut about: Vec<String> = Vec::new();
        let mut deleted: BTreeSet<String> = BTreeSet::new();
        // All names are read before anything is done.
        for (place, op) in ops.iter().enumerate() {
            if let Op::UpdateClaim(name, _)
            | Op::DeleteClaim(name, _)
            | Op::Verify(_, name)
            | Op::Agree(name) = op
                && let Name::Made(of) = name
                && *of >= place
            {
                return Err((place, Refusal::Nothing));
            }
        }
        for (place, op) in ops.iter().enumerate() {
            let fresh = || made.get(&place).cloned().unwrap_or_else(|| format!("fresh-{place}"));
            let named = |name: Name| match name {
                Name::Id(n) => self.id("c", n),
                Name::Made(of) => about[of].clone(),
            };
            let refuse = |why| Err((place, why));
            about.push(match op {
                Op::CreateClaim(id) => {
                    let id = id.map_or_else(fresh, |n| self.id("c", n));
                    if model.claims.contains_key(&id) {
                        return refuse(Refusal::Exists);
                    }
                    model.claims.insert(id.clone(), ("news".into(), 1));
                    id
                }
                Op::UpdateClaim(name, to) => {
                    let id = named(*name);
                    let Some((source, version)) = model.claims.get_mut(&id) else {
                        return refuse(Refusal::NotFound);
                    };
                    if *source != format!("s{to}") {
                        (*source, *version) = (format!("s{to}"), *version + 1);
                    }
                    id
                }
                Op::DeleteClaim(name, allow_missing) => {
                    let id = named(*name);
                    if model.claims.remove(&id).is_some() {
                        model.verifications.retain(|_, of| *of != id);
                        model.nameless.remove(&id);
                        model.agreed.remove(&id);
                        if !deleted.insert(format!("claim {id}")) {
                            return refuse(Refusal::Twice);
                        }
                    } else if !allow_missing {
                        return refuse(Refusal::NotFound);
                    }
                    id
                }
                Op::Verify(id, of) => {
                    let of = named(*of);
                    match id {
                        Some(n) => {
                            let id = self.id("v", *n);
                            if model.verifications.contains_key(&id) {
                                return refuse(Refusal::Exists);
                            }
                            model.verifications.insert(id.clone(), of);
                            id
                        }
                        None => {
                            *model.nameless.entry(of).or_default() += 1;
                            fresh()
                        }
                    }
                }
                Op::Agree(of) => {
                    if !model.agreed.insert(named(*of)) {
                        return refuse(Refusal::Exists);
                    }
                    fresh()
                }
                Op::CreateRule(id) => {
                    let id = self.id("r", *id);
                    if model.rules.contains_key(&id) {
                        return refuse(Refusal::Exists);
                    }
                    model.rules.insert(id.clone(), ("new".into(), 1));
                    id
                }
                Op::UpdateRule(id, to) => {
                    let id = self.id("r", *id);
                    let Some((name, version)) = model.rules.get_mut(&id) else {
                        return refuse(Refusal::NotFound);
                    };
                    if *name != format!("n{to}") {
                        (*name, *version) = (format!("n{to}"), *version + 1);
                    }
                    id
                }
                Op::DeleteRule(id) => {
                    let id = self.id("r", *id);
                    if model.rules.remove(&id).is_none() {
                        return refuse(Refusal::NotFound);
                    }
                    if !deleted.insert(format!("rule {id}")) {
                        return refuse(Refusal::Twice);
                    }
                    id
                }
            });
        }
        Ok(model)
    }
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), TestCaseError> {
    if holds { Ok(()) } else { Err(TestCaseError::fail(what())) }
}

async fn run(world: &World, plan: Vec<Planned>, n: usize) -> Result<(), TestCaseError> {
    let sequence = Sequence { prefix: format!("q{n}") };
    let who = world.anonymous();
    let mut model = Model::default();
    for Planned { ops, rehearse } in plan {
        let mut request = execute(ops.iter().map(|op| sequence.operation(op)).collect());
        request.options = Some(pb::WriteOptions { validate_only: rehearse, ..Default::default() });
        let answer = who.transactions().execute_transaction(request).await;
        match (answer, sequence.expect(&model, &ops, &BTreeMap::new())) {
            (Ok(answer), Ok(_)) => {
                let results = answer.into_inner().results;
                check(results.len() == ops.len(), || format!("{results:?}"))?;
                let made = results.iter().map(|one| one.id.clone()).enumerate().collect();
                if !rehearse {
                    model = sequence.expect(&model, &ops, &made).expect("as before");
                }
            }
            (Err(status), Err((place, why))) => {
                let expected = match why {
                    Refusal::Exists => (tonic::Code::AlreadyExists, "EXISTS"),
                    Refusal::NotFound => (tonic::Code::NotFound, "NOT_FOUND"),
                    Refusal::Nothing | Refusal::Twice => {
                        (tonic::Code::InvalidArgument, "FIELD_INVALID")
                    }
                };
                let at = format!("operations[{place}].");
                check(
                    (status.code(), reason(&status).as_str()) == expected
                        && status.message().starts_with(&at),
                    || format!("expected {why:?} at {at}, got {status:?}"),
                )?;
            }
            (answer, expected) => {
                check(false, || format!("expected {expected:?}, got {answer:?}"))?;
            }
        }
    }
    compare(&who, &sequence, &model).await
}

/// Everything the model knows of, and everything it could know of, as the server has it.
async fn compare(
    who: &crate::world::As,
    sequence: &Sequence,
    model: &Model,
) -> Result<(), TestCaseError> {
    let mut ids: BTreeSet<String> = model.claims.keys().cloned().collect();
    ids.extend((0..3).map(|n| sequence.id("c", n)));
    ids.extend(model.nameless.keys().cloned());
    ids.extend(model.agreed.iter().cloned());
    for id in ids {
        let request = pb::GetClaimSummaryRequest { claim_id: id.clone(), consistency: None };
        let found = match who.claims().get_claim_summary(request).await {
            Ok(found) => {
                let found = found.into_inner();
                let version =
                    |claim: &pb::Claim| claim.meta.as_ref().map_or(0, |meta| meta.version);
                let claim = found.claim.map(|claim| (claim.source.clone(), version(&claim)));
                (claim, found.verification_count, found.consensus.is_some())
            }
            Err(status) => {
                check(status.code() == tonic::Code::NotFound, || format!("{status:?}"))?;
                (None, 0, false)
            }
        };
        let named = model.verifications.values().filter(|of| **of == id).count() as i64;
        let count = named + model.nameless.get(&id).copied().unwrap_or_default();
        let expected = (model.claims.get(&id).cloned(), count, model.agreed.contains(&id));
        check(found == expected, || format!("{id}: expected {expected:?}, found {found:?}"))?;
    }
    for n in 0..2 {
        let id = sequence.id("r", n);
        let request = pb::GetPolicyRuleRequest { policy_rule_id: id.clone(), ..Default::default() };
        let found = who.policies().get_policy_rule(request).await.ok();
        let found = found.and_then(|found| found.into_inner().policy_rule);
        let found = found.map(|rule| (rule.name, rule.meta.map_or(0, |meta| meta.version)));
        let expected = model.rules.get(&id).cloned();
        check(found == expected, || format!("{id}: expected {expected:?}, found {found:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_do_what_the_model_says() {
    let world = std::sync::Arc::new(World::new().await);
    let counter = std::sync::Arc::new(AtomicUsize::new(0));
    let mut runners = Vec::new();
    for _ in 0..RUNNERS {
        let (world, counter, handle) = (world.clone(), counter.clone(), Handle::current());
        runners.push(tokio::task::spawn_blocking(move || {
            let config = Config {
                cases: SEQUENCES / RUNNERS,
                failure_persistence: None,
                max_shrink_iters: 2000,
                ..Config::default()
            };
            TestRunner::new(config).run(&sequence(), |plan| {
                // Shrinking runs a sequence again, and must find nothing of the time before.
                let n = counter.fetch_add(1, Ordering::Relaxed);
                handle.block_on(run(&world, plan, n))
            })
        }));
    }
    for runner in runners {
        if let Err(failure) = runner.await.unwrap() {
            panic!("{failure}");
        }
    }
    assert!(counter.load(Ordering::Relaxed) >= SEQUENCES as usize);
    let world = std::sync::Arc::into_inner(world).expect("all runners are done");
    world.close().await;
}

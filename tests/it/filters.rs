//! Listings with filters, orders and pages drawn from a seed, compared with a naive reading of the same resources.

mod ask;
mod draw;
mod history;
mod model;
mod text;
mod walk;
mod wrong;

use crate::world::{As, World, config_of, reason, url_of, wrong_fields};
use ask::Ask;
use draw::Dice;
use futures_util::StreamExt as _;
use futures_util::stream;
use history::History;
use model::{NOUNS, State};
use tonic::Code;
use walk::Walk;
use wrong::Answer;

/// Listings from their first page to their last.
const CASES: u64 = 5000;
/// Selectors with a fault.
const FAULTS: u64 = 500;
/// Cases that begin between two changes of the rows.
const ROUND: u64 = 125;
const CHANGES: usize = 6;
const IN_FLIGHT: usize = 24;
const DECISIONS: usize = 90;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_are_what_a_naive_reading_says() {
    let seed = std::env::var("CASEBOOK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| {
        use std::hash::{BuildHasher as _, RandomState};
        RandomState::new().hash_one(0) >> 1
    });
    eprintln!("CASEBOOK_TEST_SEED={seed}");
    let world = World::new().await;
    // The same ids and contents in another tenant: nothing of it may be seen.
    world.tenant("noise").await;
    History::new(world.as_tenant("noise"), Dice::new(seed, 0)).begin(DECISIONS, 30).await;
    let mut history = History::new(world.anonymous(), Dice::new(seed, 0));
    history.begin(DECISIONS, 120).await;
    let mut indexed = with_indexes(&world).await;
    let clients = [world.anonymous(), indexed.anonymous()];

    let (mut begun, mut refused, mut pages) = (0, 0, 0);
    let mut walks: Vec<Walk> = Vec::new();
    while begun < CASES || !walks.is_empty() {
        let cases = begun..CASES.min(begun + ROUND);
        let faults = FAULTS * cases.start / CASES..FAULTS * cases.end / CASES;
        begun = cases.end;
        let state = history.state();
        let faults = faults.map(|number| is_refused(seed, number, &state, &clients));
        let faults = stream::iter(faults).buffer_unordered(2);
        walks.extend(cases.map(|number| Walk::draw(seed, number, &history.states)));
        let runs = walks.drain(..).map(|walk| walk.run(&clients));
        let runs = stream::iter(runs).buffer_unordered(IN_FLIGHT);
        let (answers, run): (Vec<bool>, Vec<Walk>) = tokio::join!(faults.collect(), runs.collect());
        refused += answers.iter().filter(|is_refused| **is_refused).count();
        let (over, left): (Vec<_>, _) = run.into_iter().partition(|walk| walk.is_over);
        pages += over.iter().map(|walk| walk.pages).sum::<usize>();
        walks = left;
        history.go_on(CHANGES).await;
    }
    let writes = history.states.len();
    eprintln!("{CASES} listings on {pages} pages during {writes} writes; {refused} refused");
    assert!(refused as u64 > FAULTS / 2, "most of the faults are faults");
    indexed.stop().await;
    world.close().await;
}

/// A second server on the world's database. So few rows would always be scanned; its sessions go by indexes.
async fn with_indexes(world: &World) -> World {
    let name = &world.database;
    let session = world.superuser().await;
    for setting in ["enable_seqscan = off", "jit = off"] {
        session.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
    }
    World::on(name, &url_of(&config_of(name).await), &[]).await
}

/// Asks with a faulty selector. False if it happened to mean something.
async fn is_refused(seed: u64, number: u64, state: &State, clients: &[As]) -> bool {
    let mut dice = Dice::new(seed, u64::MAX - number);
    let noun = dice.below(NOUNS.len());
    let (selector, answer) = wrong::selector(&mut dice, &NOUNS[noun], &state.nouns[noun]);
    let ask = Ask { noun, selector, ..Ask::default() };
    let status = match (ask.answer(dice.pick(clients)).await, answer) {
        (Ok(_), Answer::RefusedOrRead) => return false,
        (Ok(_), Answer::Refused(reason)) => panic!("fault {number} is not {reason}: {ask:?}"),
        (Err(status), _) => status,
    };
    let reason = reason(&status);
    let is_expected = match answer {
        Answer::Refused(expected) => reason == expected,
        Answer::RefusedOrRead => ["FILTER_INVALID", "NUL_BYTE"].contains(&reason.as_str()),
    };
    let at_it = wrong_fields(&status).iter().all(|field| field.starts_with("where"));
    if status.code() != Code::InvalidArgument || !is_expected || !at_it {
        panic!("fault {number}, which is {answer:?}: {status:?} for {ask:?}");
    }
    true
}

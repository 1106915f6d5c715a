//! Following the log into a place outside: it converges however often it is killed and whatever it is given twice.

use crate::help::*;
use crate::schema::store_on;
use crate::vectors::{embedding, space};
use crate::world::{As, World};
use casebook::server::program;
use casebook::store::Store;
use casebook::store::caller::Caller;
use casebook::store::projection::follow::{Batch, Projected, Target};
use casebook::store::projection::resync::Part;
use casebook::store::projection::verify::{Extent, Fault, Verified};
use casebook::store::projection::{Held, Mode, Progress, Projection, Range};
use casebook::store::snapshot::Snapshot;
use casebook::store::vector_space::VectorSpace;
use casebook::{Error, Result, pb};
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// A vector database of another maker, as far as Casebook needs one: it survives its callers, and it fails.
#[derive(Default)]
struct Elsewhere(Mutex<State>);

#[derive(Default)]
struct State {
    position: i64,
    spaces: BTreeSet<Uuid>,
    /// Space, version and numbers by uid.
    points: BTreeMap<Uuid, (Uuid, i64, Vec<f32>)>,
    /// What becomes of the next batches.
    fates: Vec<Fate>,
    batches: usize,
    largest: usize,
}

#[derive(Clone, Copy)]
enum Fate {
    /// Refused before anything happened.
    Nothing,
    /// Killed after so many changes.
    Torn(usize),
    /// All changes, but not the position.
    Unnoted,
    /// All of it, but nobody hears of it.
    Unheard,
}

impl State {
    fn make(&mut self, change: Projected) {
        match change {
            Projected::Space(space) => {
                self.spaces.insert(space.meta.uid);
            }
            Projected::DropSpace(uid) => {
                self.spaces.remove(&uid);
                self.points.retain(|_, (space, _, _)| *space != uid);
            }
            Projected::Put(row, numbers) => {
                assert!(self.spaces.contains(&row.space_uid), "into a space that was never made");
                self.points.insert(row.meta.uid, (row.space_uid, row.meta.version, numbers));
            }
            Projected::Remove { space: _, uid } => {
                self.points.remove(&uid);
            }
        }
    }
}

impl Elsewhere {
    fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn held(uid: Uuid, version: i64, numbers: &[f32]) -> Held {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Held { uid, version, digest: format!("{:x}", Sha256::digest(bytes)) }
    }

    fn holds(&self, space: Uuid, wanted: impl Fn(Uuid) -> bool, limit: usize) -> Vec<Held> {
        self.state(|state| {
            let points = state.points.iter();
            let points = points.filter(|(uid, (within, _, _))| *within == space && wanted(**uid));
            points
                .take(limit)
                .map(|(uid, (_, version, numbers))| Self::held(*uid, *version, numbers))
                .collect()
        })
    }
}

impl Projection for Elsewhere {
    fn name(&self) -> &str {
        "elsewhere"
    }

    fn mode(&self) -> Mode {
        Mode::Follower
    }

    fn position<'a>(&'a self, _: &'a Snapshot) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async { Ok(self.state(|state| state.position)) })
    }

    fn count<'a>(&'a self, _: &'a Snapshot, space: Option<Uuid>) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            Ok(self.state(|state| {
                let points = state.points.values();
                points.filter(|(within, _, _)| space.is_none_or(|space| space == *within)).count()
            }) as i64)
        })
    }

    fn page<'a>(
        &'a self,
        _: &'a Snapshot,
        space: &'a VectorSpace,
        range: Range,
    ) -> BoxFuture<'a, Result<Vec<Held>>> {
        let Range { after, upto, limit } = range;
        let within = move |uid| uid > after && uid <= upto;
        Box::pin(async move { Ok(self.holds(space.meta.uid, within, limit as usize)) })
    }

    fn find<'a>(
        &'a self,
        _: &'a Snapshot,
        space: &'a VectorSpace,
        uids: Vec<Uuid>,
    ) -> BoxFuture<'a, Result<Vec<Held>>> {
        Box::pin(
            async move { Ok(self.holds(space.meta.uid, |uid| uids.contains(&uid), usize::MAX)) },
        )
    }

    fn target(&self) -> Option<&dyn Target> {
        Some(self)
    }
}

impl Target for Elsewhere {
    fn apply<'a>(&'a self, batch: Batch) -> BoxFuture<'a, Result<()>> {
        let killed = || Err(Error::internal("killed"));
        Box::pin(async move {
            self.state(|state| {
                let Batch { after, position, changes } = batch;
                assert_eq!(after, state.position, "a follower that does not know where it is");
                assert!(position >= after);
                state.batches += 1;
                state.largest = state.largest.max(changes.len());
                let fate = state.fates.pop();
                if let Some(Fate::Nothing) = fate {
                    return killed();
                }
                let all = changes.len();
                let some = if let Some(Fate::Torn(n)) = fate { n % (all + 1) } else { all };
                for change in changes.into_iter().take(some) {
                    state.make(change);
                }
                if let Some(Fate::Torn(_) | Fate::Unnoted) = fate {
                    return killed();
                }
                state.position = position;
                if let Some(Fate::Unheard) = fate { killed() } else { Ok(()) }
            })
        })
    }
}

struct Follower {
    store: Store,
    elsewhere: Arc<Elsewhere>,
}

impl Follower {
    async fn of(world: &World) -> Self {
        Self { store: store_on(&world.database).await, elsewhere: Arc::default() }
    }

    fn caller() -> Caller {
        program("default", "cli", "follow")
    }

    fn projection(&self) -> Arc<dyn Projection> {
        Arc::clone(&self.elsewhere) as Arc<dyn Projection>
    }

    /// Goes on to the head, whatever fails on the way; gives how often it failed, and how many vectors were lost.
    async fn catch_up(&self) -> (usize, i64) {
        let (mut failures, mut lost) = (0, 0);
        for _ in 0..10_000 {
            match self.store.follow(&Self::caller(), self.projection()).await {
                Ok(followed) => {
                    lost += followed.lost;
                    assert_eq!(followed.position, self.elsewhere.state(|state| state.position));
                    if followed.position == followed.head {
                        return (failures, lost);
                    }
                }
                Err(_) => failures += 1,
            }
        }
        panic!("it never comes to the head");
    }

    async fn progress(&self) -> Progress {
        self.store.progress(&Self::caller(), self.projection(), None).await.unwrap()
    }

    async fn verify(&self, space: &str, extent: Extent) -> Verified {
        let space: VectorSpace = self.store.get(&Self::caller(), space).await.unwrap();
        let caller = Self::caller();
        self.store.verify(&caller, self.projection(), Some(Arc::new(space)), extent).await.unwrap()
    }

    /// Everything that is live is there as recorded, and nothing else.
    async fn is_whole(&self, who: &As) {
        let mut all = 0;
        let spaces = ok!(who.spaces().list_vector_spaces(pb::ListVectorSpacesRequest {
            page: page(1000),
            ..Default::default()
        }));
        let mut uids = BTreeSet::new();
        for one in spaces.vector_spaces {
            let verified = self.verify(&one.id, Extent::Full).await;
            assert!(verified.is_in_sync(), "{}: {verified:?}", one.id);
            let sampled = self.verify(&one.id, Extent::Sample { size: 10, seed: 3 }).await;
            assert_eq!((sampled.checked, sampled.is_in_sync()), (verified.recorded.min(10), true));
            all += verified.recorded;
            uids.insert(Uuid::try_parse(&one.meta.unwrap().uid).unwrap());
        }
        self.elsewhere.state(|state| {
            assert_eq!(state.points.len() as i64, all);
            assert_eq!(state.spaces, uids);
        });
    }
}

async fn upsert(who: &As, space: &str, ids: impl IntoIterator<Item = u64>, value: f32) {
    let embeddings = ids.into_iter().map(|id| embedding(&format!("e-{id}"), &[id as f32, value]));
    ok!(who.vectors().batch_upsert_embeddings(pb::BatchUpsertEmbeddingsRequest {
        vector_space_id: space.into(),
        embeddings: embeddings.collect(),
        options: None,
    }));
}

async fn remove(who: &As, space: &str, ids: impl IntoIterator<Item = u64>) {
    ok!(who.vectors().batch_delete_embeddings(pb::BatchDeleteEmbeddingsRequest {
        vector_space_id: space.into(),
        embedding_ids: ids.into_iter().map(|id| format!("e-{id}")).collect(),
        allow_missing: true,
        options: None,
    }));
}

async fn drop_space(who: &As, id: &str) {
    ok!(who.spaces().delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: id.into(),
        ..Default::default()
    }));
}

async fn bring_back(who: &As, id: &str) {
    ok!(who.spaces().undelete_vector_space(pb::UndeleteVectorSpaceRequest {
        vector_space_id: id.into(),
        options: None,
    }));
}

async fn purge(who: &As) -> i64 {
    let request = pb::PurgeResourcesRequest {
        kind: pb::ResourceKind::Embedding.into(),
        older_than: Some(Default::default()),
        max_resources: 1000,
        ..Default::default()
    };
    ok!(who.retention().purge_resources(request)).purged_count
}

/// Writes, deletes, spaces that go and come back, purges: by chance, while the follower is killed at each step of its
/// own. F91, N5.
#[tokio::test]
async fn a_follower_converges_however_often_it_is_killed() {
    let world = World::new().await;
    let who = world.anonymous();
    let follower = Follower::of(&world).await;
    let mut dice = Dice::new(Dice::seed());
    let names = ["a", "b", "c"];
    let mut live = BTreeMap::from(names.map(|name| (name, true)));
    for name in names {
        space(&who, name, 2).await;
    }
    let (mut failures, mut returns) = (0, 0);
    for round in 0..60 {
        for _ in 0..1 + dice.below(5) {
            let name = names[dice.below(3) as usize];
            let from = dice.below(40);
            match (dice.below(10), live[name]) {
                (0..6, true) => {
                    upsert(&who, name, from..from + 1 + dice.below(20), round as f32).await;
                }
                (6..8, true) => remove(&who, name, from..from + 1 + dice.below(10)).await,
                (8, true) => {
                    drop_space(&who, name).await;
                    live.insert(name, false);
                }
                (9, _) => drop(purge(&who).await),
                (_, true) => {}
                (_, false) => {
                    bring_back(&who, name).await;
                    live.insert(name, true);
                    returns += 1;
                }
            }
        }
        let fates = (0..dice.below(4)).map(|_| match dice.below(4) {
            0 => Fate::Nothing,
            1 => Fate::Torn(dice.below(30) as usize),
            2 => Fate::Unnoted,
            _ => Fate::Unheard,
        });
        let fates = fates.collect();
        follower.elsewhere.state(|state| state.fates = fates);
        if dice.below(3) > 0 {
            failures += follower.catch_up().await.0;
            follower.is_whole(&who).await;
        }
    }
    failures += follower.catch_up().await.0;
    follower.is_whole(&who).await;
    assert!(failures > 10 && returns > 0, "{failures} failures, {returns} returns");

    // One that begins now comes to the same.
    let late = Follower::of(&world).await;
    assert_eq!(late.catch_up().await, (0, 0));
    late.is_whole(&who).await;
    for follower in [late, follower] {
        follower.store.close();
    }
    world.close().await;
}

/// Whatever the log no longer holds: archiving erases all but the newest documents, and a whole space comes back in
/// pieces.
#[tokio::test]
async fn a_follower_needs_no_more_of_the_log_than_stays() {
    let world = World::new().await;
    let who = world.anonymous();
    for name in ["s", "t"] {
        space(&who, name, 2).await;
    }
    upsert(&who, "s", 0..350, 1.0).await;
    upsert(&who, "s", 100..200, 2.0).await;
    let early = Follower::of(&world).await;
    assert_eq!(early.catch_up().await, (0, 0));
    let progress = early.progress().await;
    assert_eq!((progress.lag, progress.recorded, progress.held), (Duration::ZERO, 350, 350));
    remove(&who, "s", 10..20).await;
    drop_space(&who, "s").await;
    bring_back(&who, "s").await;
    ok!(who.spaces().set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
        alias: "live".into(),
        vector_space_id: "s".into(),
        options: None,
    }));
    upsert(&who, "t", 0..5, 1.0).await;
    remove(&who, "t", 0..1).await;
    assert_eq!(purge(&who).await, 11);
    let owner = world.superuser().await;
    let erase = "UPDATE casebook.log AS l SET document = NULL WHERE EXISTS (SELECT FROM casebook.log AS n \
                 WHERE (n.tenant_id, n.kind, n.uid) = (l.tenant_id, l.kind, l.uid) AND n.version > l.version)";
    assert!(owner.execute(erase, &[]).await.unwrap() > 100);
    drop(owner);
    let behind = early.progress().await;
    assert!(behind.applied < behind.head && behind.lag > Duration::ZERO, "{behind:?}");
    assert_eq!((behind.recorded, behind.held), (344, 350));
    let late = Follower::of(&world).await;
    // Killed in the middle of what comes back, it begins with that again.
    early.elsewhere.state(|state| state.fates = vec![Fate::Torn(50), Fate::Unheard, Fate::Unheard]);
    for (follower, failed) in [(early, 3), (late, 0)] {
        assert_eq!(follower.catch_up().await, (failed, 0));
        follower.is_whole(&who).await;
        follower.elsewhere.state(|state| assert!(state.largest <= 1000 && state.batches > 4));
        follower.store.close();
    }
    world.close().await;
}

/// What is wrong in a place outside is found and put right; what the record itself has lost is not made up, and holds
/// nobody up.
#[tokio::test]
async fn a_place_outside_is_verified_and_repaired() {
    let world = World::new().await;
    let who = world.anonymous();
    space(&who, "s", 2).await;
    upsert(&who, "s", 0..30, 1.0).await;
    let follower = Follower::of(&world).await;
    follower.catch_up().await;
    let uids: Vec<Uuid> = follower.elsewhere.state(|state| state.points.keys().copied().collect());
    follower.elsewhere.state(|state| {
        let (within, ..) = state.points[&uids[0]];
        state.points.remove(&uids[3]);
        state.points.get_mut(&uids[5]).unwrap().2[1] = 1.000_000_1;
        state.points.get_mut(&uids[7]).unwrap().1 = 9;
        for stray in [Uuid::from_u128(1), Uuid::max()] {
            state.points.insert(stray, (within, 1, vec![0.0, 0.0]));
        }
    });
    let verified = follower.verify("s", Extent::Full).await;
    assert_eq!((verified.recorded, verified.held, verified.checked), (30, 31, 30));
    assert_eq!((verified.missing, verified.extra, verified.different), (1, 2, 2));
    let told: Vec<_> = verified.told.iter().map(|one| (one.fault, one.uid)).collect();
    let expected = [
        (Fault::Extra, Uuid::from_u128(1)),
        (Fault::Missing, uids[3]),
        (Fault::Different, uids[5]),
        (Fault::Different, uids[7]),
        (Fault::Extra, Uuid::max()),
    ];
    assert_eq!(told, expected);
    let repair = async |only_differences| {
        let space: VectorSpace = follower.store.get(&Follower::caller(), "s").await.unwrap();
        let space = Arc::new(space);
        let (mut after, mut synced, mut wrong) = (Some(Uuid::nil()), 0, Vec::new());
        while let Some(from) = after {
            let part = Part { after: from, limit: 8, only_differences };
            let (caller, projection) = (Follower::caller(), follower.projection());
            let done = follower.store.resync(&caller, projection, Arc::clone(&space), part);
            let done = done.await.unwrap();
            (after, synced) = (done.next, synced + done.synced);
            wrong.extend(done.wrong);
        }
        (synced, wrong)
    };
    let position = follower.elsewhere.state(|state| state.position);
    assert_eq!(repair(true).await, (3, vec![]));
    follower.is_whole(&who).await;
    assert_eq!(repair(false).await, (30, vec![]));
    assert_eq!(follower.elsewhere.state(|state| state.position), position);

    // The record loses two: one that is outside already, one that is not.
    let owner = world.superuser().await;
    upsert(&who, "s", 30..32, 1.0).await;
    let lose = format!(
        "DELETE FROM casebook.embedding_vector WHERE {}; UPDATE casebook.embedding_vector SET vector = '[0,1]' WHERE {}",
        super::of("e-3"),
        super::of("e-31"),
    );
    owner.batch_execute(&lose).await.unwrap();
    drop(owner);
    assert_eq!(follower.catch_up().await, (0, 1));
    let verified = follower.verify("s", Extent::Full).await;
    assert_eq!((verified.recorded, verified.missing, verified.different), (32, 1, 0));
    // What is whole outside is not given up for what is not.
    let (synced, wrong) = repair(true).await;
    assert_eq!((synced, wrong.len(), wrong[0].embedding_id.as_str()), (0, 1, "e-31"));
    let (synced, wrong) = repair(false).await;
    assert_eq!((synced, wrong.len()), (31, 1));
    assert_eq!(follower.verify("s", Extent::Full).await.missing, 1);
    follower.store.close();
    world.close().await;
}

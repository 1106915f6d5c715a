//! Random calls against a model that is nothing but lists: what keys stand for, and what a listing shows.

use super::list::{all, level, prefixed};
use super::*;
use crate::world::reason;
use std::collections::BTreeMap;

/// A version: its id, and which bytes it has; a delete marker has none.
type Version = (String, Option<usize>);

#[derive(Default)]
struct Model {
    /// By key, the oldest first. A key without versions is not there.
    chains: BTreeMap<String, Vec<Version>>,
}

impl Model {
    fn top(&self, key: &str) -> Option<&Version> {
        self.chains.get(key)?.last()
    }

    fn live(&self, key: &str) -> Option<usize> {
        self.top(key)?.1
    }

    fn keys(&self) -> Vec<String> {
        self.chains.keys().filter(|key| self.live(key).is_some()).cloned().collect()
    }

    fn push(&mut self, key: &str, version: Version) {
        self.chains.entry(key.to_owned()).or_default().push(version);
    }

    fn remove(&mut self, key: &str, id: &str) {
        let chain = self.chains.get_mut(key).unwrap();
        chain.retain(|(there, _)| there != id);
        if chain.is_empty() {
            self.chains.remove(key);
        }
    }

    /// Keys and common prefixes of a level, by looking at each key.
    fn level(&self, prefix: &str, delimiter: &str) -> (Vec<String>, Vec<String>) {
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        for key in self.keys() {
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
                Some(at) => prefixes.push(format!("{prefix}{}", &rest[..at + delimiter.len()])),
                None => keys.push(key),
            }
        }
        prefixes.dedup();
        (keys, prefixes)
    }

    fn references(&self, bytes: usize) -> i64 {
        self.chains.values().flatten().filter(|(_, of)| *of == Some(bytes)).count() as i64
    }
}

const PARTS: [&str; 9] = ["a", "b", "ab", "%", "_", "é", "a/", "/", "-"];
const BYTES: [&[u8]; 4] = [b"zero", b"one", b"two", b"three"];

fn key(dice: &mut Dice) -> String {
    let mut key: String =
        (0..1 + dice.below(3)).map(|_| PARTS[dice.below(PARTS.len() as u64) as usize]).collect();
    if key.starts_with('/') {
        key.insert(0, 'c');
    }
    key
}

/// A version of a key, or of another one, or none.
fn some_version(model: &Model, key: &str, dice: &mut Dice) -> String {
    match model.chains.get(key).filter(|_| dice.below(10) > 0) {
        Some(chain) => chain[dice.below(chain.len() as u64) as usize].0.clone(),
        None => uuid::Uuid::now_v7().to_string(),
    }
}

async fn step(me: &As, model: &mut Model, dice: &mut Dice) {
    let key = self::key(dice);
    let mut objects = me.objects();
    match dice.below(11) {
        0..4 => {
            let bytes = dice.below(BYTES.len() as u64) as usize;
            let mut request = put(&key, BYTES[bytes]);
            request.if_none_match = dice.below(5) == 0;
            let may = !request.if_none_match || model.live(&key).is_none();
            match objects.put_object(request).await {
                Ok(answer) => {
                    assert!(may);
                    let version = answer.into_inner().object_version.unwrap();
                    model.push(&key, (version.id, Some(bytes)));
                }
                Err(status) => assert!(!may && reason(&status) == "EXISTS", "{status:?}"),
            }
        }
        4 => {
            let from = self::key(dice);
            let id =
                if dice.below(2) == 0 { String::new() } else { some_version(model, &from, dice) };
            let bytes = match id.as_str() {
                "" => model.live(&from),
                id => model.chains.get(&from).and_then(|chain| chain.iter().find(|v| v.0 == id)?.1),
            };
            let request = pb::CopyObjectRequest {
                source: of(&from, &id),
                destination_key: key.clone(),
                ..Default::default()
            };
            match (objects.copy_object(request).await, bytes) {
                (Ok(answer), Some(bytes)) => {
                    let version = answer.into_inner().object_version.unwrap();
                    model.push(&key, (version.id, Some(bytes)));
                }
                (Err(_), None) => {}
                (answer, bytes) => panic!("{answer:?} of {bytes:?}"),
            }
        }
        5 => {
            let id = some_version(model, &key, dice);
            let bytes =
                model.chains.get(&key).and_then(|chain| chain.iter().find(|v| v.0 == id)?.1);
            match (objects.rollback_object(rollback(&key, &id)).await, bytes) {
                (Ok(answer), Some(bytes)) => {
                    let version = answer.into_inner().object_version.unwrap();
                    model.push(&key, (version.id, Some(bytes)));
                }
                (Err(_), None) => {}
                (answer, bytes) => panic!("{answer:?} of {bytes:?}"),
            }
        }
        6 => match (objects.delete_object(delete(&key)).await, model.live(&key)) {
            (Ok(answer), Some(_)) => {
                let marker = answer.into_inner().object_version.unwrap();
                model.push(&key, (marker.id, None));
            }
            (Err(status), None) => assert_eq!(reason(&status), "NOT_FOUND"),
            (answer, live) => panic!("{answer:?} of {live:?}"),
        },
        7 | 8 => {
            let id = some_version(model, &key, dice);
            let is_there =
                model.chains.get(&key).is_some_and(|chain| chain.iter().any(|v| v.0 == id));
            match objects.delete_object(delete_version(&key, &id)).await {
                Ok(_) => {
                    assert!(is_there);
                    model.remove(&key, &id);
                }
                Err(status) => assert!(!is_there && reason(&status) == "NOT_FOUND", "{status:?}"),
            }
        }
        9 => {
            let mut keys = vec![self::key(dice), self::key(dice), key];
            keys.sort();
            keys.dedup();
            let bytes = dice.below(BYTES.len() as u64) as usize;
            let requests: Vec<_> = keys
                .iter()
                .map(|key| {
                    let if_none_match = dice.below(4) == 0;
                    pb::PutObjectRequest { if_none_match, ..put(key, BYTES[bytes]) }
                })
                .collect();
            let may =
                |put: &pb::PutObjectRequest| !put.if_none_match || model.live(&put.key).is_none();
            let at = requests.iter().position(|put| !may(put));
            let request = pb::BatchPutObjectsRequest { requests, options: None };
            match (objects.batch_put_objects(request).await, at) {
                (Ok(answer), None) => {
                    let items = answer.into_inner().items;
                    assert_eq!(
                        items.iter().map(|item| &item.key).collect::<Vec<_>>(),
                        keys.iter().collect::<Vec<_>>()
                    );
                    for item in items {
                        model.push(&item.key, (item.version_id, Some(bytes)));
                    }
                }
                (Err(status), Some(at)) => {
                    assert_eq!(reason(&status), "EXISTS");
                    assert_eq!(info(&status)["at"], format!("requests[{at}]"));
                }
                (answer, at) => panic!("{answer:?} with {at:?}"),
            }
        }
        _ => {
            let mut keys = vec![key, self::key(dice), self::key(dice)];
            keys.sort();
            keys.dedup();
            let live: Vec<String> =
                keys.iter().filter(|key| model.live(key).is_some()).cloned().collect();
            let request =
                pb::BatchDeleteObjectsRequest { keys, allow_missing: true, ..Default::default() };
            let answer = objects.batch_delete_objects(request).await.unwrap().into_inner();
            assert_eq!(answer.deleted_count as usize, live.len());
            for key in live {
                let marker = versions(me, &key).await[0].0.clone();
                model.push(&key, (marker, None));
            }
        }
    }
}

async fn compare(me: &As, model: &Model, dice: &mut Dice) {
    for (key, chain) in &model.chains {
        let found = versions(me, key).await;
        let expected: Vec<(String, bool)> =
            chain.iter().rev().enumerate().map(|(n, (id, _))| (id.clone(), n == 0)).collect();
        assert_eq!(found, expected, "{key}");
        match model.live(key) {
            Some(bytes) => {
                let object = ok!(me.objects().get_object(get(key))).object.unwrap();
                assert_eq!(object.blob, Some(digest(BYTES[bytes])));
                assert_eq!(object.version_count as usize, chain.len());
                assert_eq!(Some(&object.version_id), model.top(key).map(|top| &top.0));
            }
            None => {
                fails!(me.objects().get_object(get(key)), NotFound, "NOT_FOUND");
            }
        }
    }
    for _ in 0..6 {
        let prefix = if dice.below(3) == 0 { String::new() } else { key(dice) };
        let delimiter = ["", "/", "a", "b/", "é"][dice.below(5) as usize];
        let page_size = 1 + dice.below(7) as i32;
        let request = match delimiter {
            "" => prefixed(&prefix),
            _ => level(&prefix, delimiter),
        };
        let (keys, prefixes, _) = all(me, &request, page_size).await;
        assert_eq!((keys, prefixes), model.level(&prefix, delimiter), "{prefix:?} {delimiter:?}");
    }
    for (n, bytes) in BYTES.iter().enumerate() {
        let request = pb::GetBlobRequest { digest: Some(digest(bytes)) };
        let blob = ok!(me.blobs().get_blob(request)).blob.unwrap();
        assert_eq!(blob.reference_count, model.references(n));
    }
}

#[tokio::test]
async fn random_calls_leave_what_the_model_says() {
    let world = World::new().await;
    world.tenant("a").await;
    world.tenant("b").await;
    let seed = Dice::seed();
    let mut players = Vec::new();
    for (n, tenant) in ["a", "b"].into_iter().enumerate() {
        let me = world.as_tenant(tenant);
        for bytes in BYTES {
            upload(&me, bytes).await;
        }
        players.push((me, Model::default(), Dice::new(seed.wrapping_add(n as u64))));
    }
    // Both in turns, on the same keys: neither sees the other.
    for round in 0..240 {
        for (me, model, dice) in &mut players {
            step(me, model, dice).await;
            if round % 30 == 29 {
                compare(me, model, dice).await;
            }
        }
    }
    let busy = players.iter().all(|(_, model, _)| model.chains.len() > 5);
    assert!(busy, "the dice made too little of it");
    world.close().await;
}

//! Tests of tokens and of what is remembered about them.

use super::*;
use crate::edge::tests::{FakeDirectory, SECRET, token};
use crate::error::Error;
use crate::store::caller::TenantState;

const KEEP: Duration = Duration::from_secs(4);

fn credentials(fake: &FakeDirectory) -> Credentials {
    Credentials::new(fake.directory(), KEEP)
}

#[test]
fn tokens_have_one_spelling() {
    let uid = Uuid::now_v7();
    let good = token(uid, SECRET);
    let parsed = Token::parse(good.as_bytes()).unwrap();
    assert_eq!((parsed.uid, parsed.secret), (uid, SECRET.as_bytes()));
    let upper = format!("cbk_{}_{SECRET}", uid.simple().to_string().to_uppercase());
    let bad = [
        String::new(),
        "cbk_".into(),
        upper,
        good[1..].to_owned(),
        format!("{good}A"),
        good[..good.len() - 1].to_owned(),
        good.replace("cbk_", "cbK_"),
        format!("{}=", &good[..good.len() - 1]),
        format!("cbk_{}x{SECRET}", uid.simple()),
        format!("cbk_{}_{}é", uid.simple(), &SECRET[2..]),
    ];
    for text in bad {
        assert!(Token::parse(text.as_bytes()).is_none(), "{text}");
    }
}

#[tokio::test]
async fn only_a_right_living_token_opens() {
    let fake = FakeDirectory::default();
    let uid = fake.add("acme", Roles::ALL);
    let known = credentials(&fake);
    let verified = known.verify(token(uid, SECRET).as_bytes()).await.unwrap().unwrap();
    assert_eq!(&*verified.principal, format!("token:{}", uid.simple()));
    assert_eq!(&*verified.tenant, "acme");

    let wrong = token(uid, &SECRET.replace('a', "b"));
    let unknown = token(Uuid::now_v7(), SECRET);
    for text in [wrong, unknown, "nonsense".into()] {
        assert!(known.verify(text.as_bytes()).await.unwrap().is_none(), "{text}");
    }

    let revoked = fake.add("acme", Roles::ALL);
    fake.change(revoked, |credential| credential.revoked = true);
    assert!(known.verify(token(revoked, SECRET).as_bytes()).await.unwrap().is_none());

    // One that expires while it is remembered ends there and then.
    let ending = fake.add("acme", Roles::ALL);
    let expire_time = SystemTime::now() + Duration::from_secs(1);
    fake.change(ending, |credential| credential.expire_time = Some(expire_time));
    let ending = token(ending, SECRET);
    assert!(known.verify(ending.as_bytes()).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(1010)).await;
    assert!(known.verify(ending.as_bytes()).await.unwrap().is_none());
}

#[tokio::test]
async fn results_are_remembered_for_their_time() {
    let fake = FakeDirectory::default();
    let uid = fake.add("acme", Roles::ALL);
    let known = credentials(&fake);
    let now = Instant::now();
    let good = token(uid, SECRET);
    let is_good =
        async |text: &str, at| known.verify_at(text.as_bytes(), at).await.unwrap().is_some();
    for _ in 0..3 {
        assert!(is_good(&good, now).await);
    }
    assert_eq!(fake.asked(), 1);

    let late = Uuid::now_v7();
    let unknown = token(late, SECRET);
    for _ in 0..3 {
        assert!(!is_good(&unknown, now).await);
    }
    assert_eq!(fake.asked(), 2);
    fake.add_as(late, "acme", Roles::ALL);
    assert!(!is_good(&unknown, now).await);
    assert!(is_good(&unknown, now + UNKNOWN_MAX).await);

    // A revocation elsewhere works within the time.
    fake.change(uid, |credential| credential.revoked = true);
    assert!(is_good(&good, now).await);
    assert!(!is_good(&good, now + KEEP).await);
}

#[tokio::test]
async fn one_caller_renews_and_an_outage_is_ridden_out() {
    let fake = FakeDirectory::default();
    let uid = fake.add("acme", Roles::ALL);
    let known = credentials(&fake);
    let (good, tenant) = (token(uid, SECRET), Arc::from("acme"));
    let begin = Instant::now();
    known.verify_at(good.as_bytes(), begin).await.unwrap();
    known.standing_at(&tenant, begin).await.unwrap();
    let ageing = begin + KEEP * 7 / 8;
    fake.fail(true);
    for _ in 0..3 {
        assert!(known.verify_at(good.as_bytes(), ageing).await.unwrap().is_some());
        assert!(known.standing_at(&tenant, ageing).await.unwrap().is_some());
    }
    assert_eq!(fake.asked(), 4, "one renewal of each was tried");
    let old = begin + KEEP;
    let error = known.verify_at(good.as_bytes(), old).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }));
    assert!(known.standing_at(&tenant, old).await.is_err());
    fake.fail(false);
    assert!(known.verify_at(good.as_bytes(), old).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_forgotten_is_asked_again() {
    let fake = FakeDirectory::default();
    let uid = fake.add("acme", Roles::ALL);
    let known = credentials(&fake);
    let good = token(uid, SECRET);
    assert!(known.verify(good.as_bytes()).await.unwrap().is_some());
    fake.change(uid, |credential| credential.revoked = true);
    known.forget(uid);
    assert!(known.verify(good.as_bytes()).await.unwrap().is_none());

    let other = fake.add("acme", Roles::ALL);
    let other_token = token(other, SECRET);
    known.verify(other_token.as_bytes()).await.unwrap();
    let tenant = Arc::from("acme");
    assert_eq!(known.standing(&tenant).await.unwrap().map(|s| s.state), Some(TenantState::Active));
    fake.set_tenant("acme", TenantState::ReadOnly);
    fake.change(other, |credential| credential.standing.state = TenantState::ReadOnly);
    known.forget_tenant("acme");
    assert_eq!(
        known.standing(&tenant).await.unwrap().map(|s| s.state),
        Some(TenantState::ReadOnly)
    );
    let verified = known.verify(other_token.as_bytes()).await.unwrap().unwrap();
    assert_eq!(verified.standing.state, TenantState::ReadOnly);
}

/// The directory reads the row, then the token is revoked and forgotten, then the answer arrives.
#[tokio::test]
async fn a_look_up_under_way_does_not_bring_back_the_forgotten() {
    let fake = FakeDirectory::default();
    let uid = fake.add("acme", Roles::ALL);
    fake.delay(Duration::from_millis(100));
    let known = Arc::new(credentials(&fake));
    let good = token(uid, SECRET);
    let first = tokio::spawn({
        let (known, good) = (known.clone(), good.clone());
        async move { known.verify(good.as_bytes()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.change(uid, |credential| credential.revoked = true);
    known.forget(uid);
    assert!(first.await.unwrap().unwrap().is_some());
    assert!(known.verify(good.as_bytes()).await.unwrap().is_none());
}

#[test]
fn caches_are_bounded() {
    let cache = Cache::<usize, ()>::default();
    let now = Instant::now();
    for key in 0..ENTRIES_MAX {
        cache.put(key, (), now + Duration::from_millis(key as u64), KEEP);
    }
    cache.put(ENTRIES_MAX, (), now, KEEP);
    assert_eq!(cache.entries().len(), ENTRIES_MAX / 4 * 3);
    assert!(!cache.has(&0, now), "those that end first made room");
    assert!(cache.has(&(ENTRIES_MAX - 1), now) && cache.has(&ENTRIES_MAX, now));
    for key in 0..ENTRIES_MAX * 2 {
        cache.put(key, (), now, KEEP);
        assert!(cache.entries().len() <= ENTRIES_MAX);
    }

    let cache = Cache::<usize, ()>::default();
    for key in 0..ENTRIES_MAX {
        cache.put(key, (), now, KEEP);
    }
    cache.put(ENTRIES_MAX, (), now + KEEP, KEEP);
    assert_eq!(cache.entries().len(), 1, "what has ended goes first");
}

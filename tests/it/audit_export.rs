//! ExportAudit: the log as a stream, whole or seen not to be.

use crate::help::*;
use crate::world::{As, World, create, decision, wrong_fields};
use casebook::pb;
use pb::export_audit_response::{Entry, Part};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

/// An export as its reader has it.
#[derive(Default)]
pub struct Exported {
    pub manifest: serde_json::Value,
    pub entries: Vec<Entry>,
    pub trailer: serde_json::Value,
}

impl Exported {
    pub fn seqs(&self) -> Vec<i64> {
        self.entries.iter().map(|entry| entry.entry.as_ref().unwrap().seq).collect()
    }

    /// Holds the trailer against what came.
    pub fn check(&self) {
        let mut hashes = Sha256::new();
        for entry in &self.entries {
            let entry = entry.entry.as_ref().unwrap();
            let leaf_hash = Sha256::new_with_prefix([0]).chain_update(&entry.leaf).finalize();
            assert_eq!(entry.leaf_hash, leaf_hash.to_vec());
            hashes.update(&entry.leaf_hash);
        }
        assert_eq!(self.trailer["entry_count"], self.entries.len());
        assert_eq!(self.trailer["leaf_hashes_sha256"], format!("{:x}", hashes.finalize()));
    }
}

pub async fn export(who: &As, request: pb::ExportAuditRequest) -> Result<Exported, Status> {
    let mut stream = who.audit().export_audit(request).await?.into_inner();
    let mut found = Exported::default();
    while let Some(part) = stream.next().await {
        match part?.part.expect("a part") {
            Part::ManifestJson(json) => {
                assert!(found.manifest.is_null() && found.entries.is_empty());
                found.manifest = serde_json::from_str(&json).unwrap();
            }
            Part::Entry(entry) => {
                assert!(found.manifest.is_object() && found.trailer.is_null());
                found.entries.push(entry);
            }
            Part::TrailerJson(json) => found.trailer = serde_json::from_str(&json).unwrap(),
        }
    }
    Ok(found)
}

/// Entries without going through the service: quick, and as large as wanted.
pub async fn fill(world: &World, entries: i32, document_bytes: i32) {
    let superuser = world.superuser().await;
    let sql = format!(
        "INSERT INTO casebook.log (tenant_id, seq, time, kind, uid, id, version, action, method, principal, actor,
           ip_address, user_agent, request_id, trace_id, document, salt, leaf, leaf_hash)
         SELECT 'default', n, now(), 'decision', gen_random_uuid(), 'd-' || n, 1, 'CREATE', 'm', 'cli', '', '', '', '', '',
           convert_to('{{\"a\":\"' || repeat('x', {document_bytes}) || '\"}}', 'UTF8'), 'salt',
           convert_to('leaf ' || n, 'UTF8'), sha256('\\x00'::bytea || convert_to('leaf ' || n, 'UTF8'))
         FROM generate_series(1, {entries}) AS n;
         INSERT INTO casebook.log_head (tenant_id, seq) VALUES ('default', {entries})
         ON CONFLICT (tenant_id) DO UPDATE SET seq = EXCLUDED.seq"
    );
    superuser.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn an_export_can_be_checked_without_us() {
    let world = World::new().await;
    world.tenant("other").await;
    let me = world.anonymous().header("x-casebook-actor", "ann");
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let class = pb::Decision { retention_class: "long".into(), ..Default::default() };
    ok!(me.decisions().update_decision(update("d", &["retention_class"], class)));
    ok!(me.decisions().delete_decision(delete("d")));
    let event = pb::AuditEvent {
        action: "DOWNLOAD".into(),
        object_key: "k".into(),
        user_id: "bob".into(),
        ..Default::default()
    };
    ok!(me.audit().log_event(pb::LogEventRequest { event: Some(event), options: None }));
    let with_details = pb::ExportAuditRequest { include_details: true, ..Default::default() };
    let found = export(&me, with_details).await.unwrap();
    found.check();
    assert_eq!(found.seqs(), [1, 2, 3, 4]);
    let manifest = &found.manifest;
    assert_eq!((&manifest["format"], &manifest["v"]), (&"casebook-audit".into(), &1.into()));
    assert_eq!((&manifest["tenant"], &manifest["details"]), (&"default".into(), &true.into()));
    assert_eq!((&manifest["first_seq"], &manifest["last_seq"]), (&1.into(), &4.into()));
    assert_eq!(manifest["filtered"], false);
    assert!(manifest["time"].as_str().unwrap().starts_with("20"));
    for Entry { entry, document, salt } in &found.entries {
        let entry = entry.as_ref().unwrap();
        let leaf: serde_json::Value = serde_json::from_slice(&entry.leaf).unwrap();
        let digest = Sha256::new_with_prefix(salt).chain_update(document).finalize();
        assert_eq!(leaf["digest"], format!("{digest:x}"));
        let who = format!("{}\n{}", entry.principal, entry.actor);
        let digest = Sha256::new_with_prefix(salt).chain_update(who).finalize();
        assert_eq!(leaf["actor_digest"], format!("{digest:x}"));
        assert_eq!((&leaf["tenant"], &leaf["v"]), (&"default".into(), &1.into()));
        // Who told of an event is kept, too, where it names another user.
        let document: serde_json::Value = serde_json::from_slice(document).unwrap();
        if entry.kind == "event" {
            assert_eq!(
                (&document["user_id"], &document["reporter"]),
                (&"bob".into(), &"ann".into())
            );
        }
        // The very entry that a list shows.
        let seq = entry.seq;
        let listed = ok!(me.audit().get_audit_entry(pb::GetAuditEntryRequest { seq }));
        let listed = pb::AuditEntry { changes: None, ..listed.entry.unwrap() };
        assert_eq!(*entry, listed);
    }
    let plain = export(&me, pb::ExportAuditRequest::default()).await.unwrap();
    plain.check();
    assert_eq!((plain.manifest["details"].clone(), plain.seqs()), (false.into(), found.seqs()));
    assert!(plain.entries.iter().all(|entry| entry.salt.is_empty() && entry.document.is_empty()));
    // Another tenant has another log.
    let other = export(&world.as_tenant("other"), pb::ExportAuditRequest::default()).await.unwrap();
    other.check();
    assert_eq!((other.seqs().len(), &other.manifest["tenant"]), (0, &"other".into()));
    world.close().await;
}

#[tokio::test]
async fn a_part_of_the_log_is_chosen_by_number_time_and_filter() {
    let world = World::new().await;
    let me = world.anonymous();
    for (n, id) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
        if n == 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        ok!(me.decisions().create_decision(create(id, decision("ALLOW", 0.5))));
    }
    let fourth =
        ok!(me.audit().get_audit_entry(pb::GetAuditEntryRequest { seq: 4 })).entry.unwrap();
    let window = pb::TimeWindow { start_time: fourth.event_time, ..Default::default() };
    let filter = expression("entity_id = b OR entity_id = e");
    let all = pb::ExportAuditRequest::default;
    for (request, wanted) in [
        (all(), vec![1, 2, 3, 4, 5, 6]),
        (pb::ExportAuditRequest { from_seq: 5, ..all() }, vec![5, 6]),
        (pb::ExportAuditRequest { to_seq: 2, ..all() }, vec![1, 2]),
        (pb::ExportAuditRequest { from_seq: 3, to_seq: 3, ..all() }, vec![3]),
        (pb::ExportAuditRequest { window: Some(window), ..all() }, vec![4, 5, 6]),
        (pb::ExportAuditRequest { r#where: filter.clone(), ..all() }, vec![2, 5]),
        (pb::ExportAuditRequest { r#where: filter, to_seq: 4, ..all() }, vec![2]),
        // Whoever takes up behind the newest gets nothing, and can see that it is all.
        (pb::ExportAuditRequest { from_seq: 7, ..all() }, vec![]),
    ] {
        let filtered = request.window.is_some() || request.r#where.is_some();
        let found = export(&me, request.clone()).await.unwrap();
        found.check();
        assert_eq!(found.seqs(), wanted, "{request:?}");
        assert_eq!(found.manifest["filtered"], filtered);
    }
    for (request, reason, field) in [
        (pb::ExportAuditRequest { from_seq: -1, ..all() }, "FIELD_INVALID", "from_seq"),
        (pb::ExportAuditRequest { to_seq: -1, ..all() }, "FIELD_INVALID", "to_seq"),
        (pb::ExportAuditRequest { to_seq: 7, ..all() }, "FIELD_INVALID", "to_seq"),
        (pb::ExportAuditRequest { from_seq: 8, ..all() }, "FIELD_INVALID", "from_seq"),
        (pb::ExportAuditRequest { from_seq: 3, to_seq: 2, ..all() }, "FIELD_INVALID", "from_seq"),
        (
            pb::ExportAuditRequest { r#where: expression("success = true"), ..all() },
            "FILTER_INVALID",
            "where.expression",
        ),
    ] {
        let status = fails!(me.audit().export_audit(request), InvalidArgument, reason);
        assert_eq!(wrong_fields(&status), [field], "{status:?}");
    }
    world.close().await;
}

#[tokio::test]
async fn thousands_of_entries_come_at_one_head_in_bounded_pieces() {
    let world = World::new().await;
    fill(&world, 3000, 10).await;
    let me = world.anonymous();
    let mut stream = ok!(me.audit().export_audit(pb::ExportAuditRequest::default()));
    let mut seqs = Vec::new();
    while let Some(part) = stream.next().await {
        if seqs.is_empty() {
            // What is written meanwhile is not in it.
            ok!(me.decisions().create_decision(create("", decision("ALLOW", 0.5))));
        }
        if let Some(Part::Entry(entry)) = part.unwrap().part {
            seqs.push(entry.entry.unwrap().seq);
        }
    }
    assert_eq!(seqs, (1..=3000).collect::<Vec<_>>());
    let found = export(&me, pb::ExportAuditRequest { from_seq: 2, ..Default::default() }).await;
    let found = found.unwrap();
    found.check();
    assert!(found.entries.len() > 3000);
    world.close().await;
}

async fn one_connection() -> World {
    let pages = ("metrics_listen", "127.0.0.1:0");
    World::with(&[("pool_max_size", "1"), ("pool_min_idle", "0"), pages]).await
}

#[tokio::test]
async fn a_slow_reader_holds_back_the_reading_and_no_session() {
    let world = one_connection().await;
    // 400 MB of documents, of which the client's and the server's windows take a part.
    fill(&world, 4000, 100_000).await;
    let me = world.anonymous();
    let request = pb::ExportAuditRequest { include_details: true, ..Default::default() };
    let mut stream = ok!(me.audit().export_audit(request));
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pieces = pieces_read(&world).await;
    // A piece is 4 MiB, and windows are a few: it does not read on.
    assert!((1.0..=12.0).contains(&pieces), "{pieces} pieces");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(pieces_read(&world).await, pieces);
    // The one connection of the pool is free meanwhile.
    entries(&me, 1).await;
    let mut count = 0;
    while let Some(part) = stream.next().await {
        count += i32::from(matches!(part.unwrap().part, Some(Part::Entry(_))));
    }
    assert_eq!(count, 4000);
    assert!(pieces_read(&world).await > 90.0);
    world.close().await;
}

/// How many pieces of the log the server has read, by its own count.
async fn pieces_read(world: &World) -> f64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut pages = tokio::net::TcpStream::connect(world.pages.unwrap()).await.unwrap();
    pages.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    pages.read_to_string(&mut text).await.unwrap();
    let counted = text.lines().filter(|line| line.contains("export.PIECE_END"));
    let counted = counted.filter(|line| line.contains("_count{"));
    counted.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn exports_have_a_limit_which_an_abandoned_one_gives_back() {
    let world = World::with(&[("export_streams_max", "1")]).await;
    fill(&world, 4000, 100_000).await;
    let me = world.anonymous();
    let request = pb::ExportAuditRequest { include_details: true, ..Default::default() };
    let mut stream = ok!(me.audit().export_audit(request.clone()));
    stream.next().await.unwrap().unwrap();
    let status = fails!(me.audit().export_audit(request.clone()), ResourceExhausted, "OVERLOADED");
    assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());
    drop(stream);
    let part = pb::ExportAuditRequest { to_seq: 1, ..Default::default() };
    for _ in 0..200 {
        if let Ok(found) = export(&me, part.clone()).await {
            found.check();
            world.close().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the abandoned export stays");
}

/// The end of a stream that is read slowly from here on.
async fn end_of(mut stream: tonic::Streaming<pb::ExportAuditResponse>) -> Status {
    while let Some(part) = stream.next().await {
        match part {
            Ok(part) => assert!(!matches!(part.part, Some(Part::TrailerJson(_)))),
            Err(status) => return status,
        }
    }
    panic!("a stream that was cut ended as if it were whole");
}

#[tokio::test]
async fn an_export_ends_at_its_deadline_and_when_the_server_stops() {
    let mut world = World::with(&[("stream_deadline_max_ms", "2000")]).await;
    fill(&world, 4000, 100_000).await;
    let me = world.anonymous();
    let request = pb::ExportAuditRequest { include_details: true, ..Default::default() };
    // Longer than asked for, and longer than a unary call may take without asking.
    for asked in [Some("300m"), None] {
        let mut call = tonic::Request::new(request.clone());
        if let Some(asked) = asked {
            call.metadata_mut().insert("grpc-timeout", asked.parse().unwrap());
        }
        let began = std::time::Instant::now();
        let stream = ok!(me.audit().export_audit(call));
        let wait = if asked.is_some() { 600 } else { 2300 };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let status = end_of(stream).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?} {:?}", began.elapsed());
        assert_eq!(crate::world::reason(&status), "DEADLINE_EXCEEDED");
    }
    let stream = ok!(me.audit().export_audit(request));
    let (_, status) = tokio::join!(world.stop(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        end_of(stream).await
    });
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(crate::world::reason(&status), "SHUTTING_DOWN");
    world.close().await;
}

#[tokio::test]
async fn an_export_that_fails_on_its_way_says_so() {
    let world = World::new().await;
    fill(&world, 1200, 10).await;
    let superuser = world.superuser().await;
    // A document of an event that cannot be read.
    let spoil = "UPDATE casebook.log SET kind = 'event' WHERE seq = 1100";
    superuser.batch_execute(spoil).await.unwrap();
    let Err(status) = export(&world.anonymous(), pb::ExportAuditRequest::default()).await else {
        panic!("it went through")
    };
    assert_eq!(
        (status.code(), crate::world::reason(&status).as_str()),
        (Code::Internal, "INTERNAL")
    );
    drop(superuser);
    world.close().await;
}

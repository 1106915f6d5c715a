//! ArchiveAuditEntries: C26, F341, F369, N11: detail goes to a file first, hashes stay, and what is gone says so.

use crate::help::*;
use crate::world::{As, World, connect, create, decision, get, open_folder, request, wrong_fields};
use casebook::pb;
use pb::archive_audit_entries_request::Until;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use tonic::Status;

const DAY: i64 = 86_400;

/// A world that archives into a folder what is a day old.
async fn archiving(folder: &Path) -> World {
    let folder = folder.to_str().unwrap();
    World::with(&[("audit_archive_dir", folder), ("audit_keep_min_days", "1")]).await
}

/// Makes the entries up to a number older than any limit.
async fn age(world: &World, tenant: &str, upto: i64) {
    let sql = format!(
        "UPDATE casebook.log SET time = time - interval '400 days'
         WHERE tenant_id = '{tenant}' AND seq <= {upto} AND time > now() - interval '300 days'"
    );
    world.superuser().await.batch_execute(&sql).await.unwrap();
}

fn older_than(days: i64) -> pb::ArchiveAuditEntriesRequest {
    let span = prost_types::Duration { seconds: days * DAY, nanos: 0 };
    pb::ArchiveAuditEntriesRequest { until: Some(Until::OlderThan(span)), ..Default::default() }
}

fn up_to(seq: i64) -> pb::ArchiveAuditEntriesRequest {
    pb::ArchiveAuditEntriesRequest { until: Some(Until::ToSeq(seq)), ..Default::default() }
}

async fn archive(
    who: &As,
    request: pb::ArchiveAuditEntriesRequest,
) -> pb::ArchiveAuditEntriesResponse {
    ok!(who.audit().archive_audit_entries(request))
}

async fn entry(who: &As, seq: i64) -> pb::AuditEntry {
    ok!(who.audit().get_audit_entry(pb::GetAuditEntryRequest { seq })).entry.unwrap()
}

/// A segment's lines, held against its name, digest, manifest and trailer by nothing but JSON and SHA-256.
fn segment(folder: &Path, answer: &pb::ArchiveAuditEntriesResponse) -> Vec<Value> {
    let bytes = std::fs::read(folder.join(&answer.segment)).unwrap();
    let sha256 = Sha256::digest(&bytes);
    assert_eq!(answer.segment_sha256, sha256.to_vec());
    assert!(answer.segment.contains(&format!("{sha256:x}")[..16]));
    let text = String::from_utf8(bytes).unwrap();
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (manifest, trailer) = (lines.remove(0), lines.pop().unwrap());
    assert_eq!(manifest["format"], "casebook-audit");
    let tenant = answer.segment.split_once('/').unwrap().0;
    assert_eq!((&manifest["tenant"], &manifest["details"]), (&tenant.into(), &true.into()));
    assert_eq!(manifest["first_seq"], answer.first_seq);
    assert_eq!(manifest["last_seq"], answer.last_seq);
    assert_eq!(trailer["entry_count"], answer.archived_count);
    assert_eq!(lines.len() as i64, answer.archived_count);
    let mut hashes = Sha256::new();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(line["seq"], answer.first_seq + n as i64);
        let leaf = text(&line["leaf"]);
        let leaf_hash = Sha256::new_with_prefix([0]).chain_update(&leaf).finalize();
        assert_eq!(line["leaf_hash"], format!("{leaf_hash:x}"));
        hashes.update(leaf_hash);
        let leaf: Value = serde_json::from_str(&leaf).unwrap();
        let salt = unhex(&text(&line["salt"]));
        let open = |bytes: &[u8]| {
            format!("{:x}", Sha256::new_with_prefix(&salt).chain_update(bytes).finalize())
        };
        assert_eq!(leaf["digest"], open(text(&line["document"]).as_bytes()));
        let who = format!("{}\n{}", text(&line["principal"]), text(&line["actor"]));
        assert_eq!(leaf["actor_digest"], open(who.as_bytes()));
        for name in ["kind", "id", "uid", "version", "action", "method"] {
            assert_eq!(leaf[name], line[name], "{name}");
        }
    }
    assert_eq!(trailer["leaf_hashes_sha256"], format!("{:x}", hashes.finalize()));
    lines
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|n| u8::from_str_radix(&text[n..n + 2], 16).unwrap()).collect()
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |found| found.count())
}

fn reclassed(id: &str, class: &str) -> pb::UpdateDecisionRequest {
    let class = pb::Decision { retention_class: class.into(), ..Default::default() };
    update(id, &["retention_class"], class)
}

#[tokio::test]
async fn detail_goes_to_a_file_and_hashes_stay() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    let me = world.anonymous().header("x-casebook-actor", "ann");
    ok!(me.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    ok!(me.decisions().update_decision(reclassed("d", "long")));
    let event = pb::AuditEvent {
        action: "DOWNLOAD".into(),
        object_key: "k".into(),
        user_id: "bob".into(),
        ..Default::default()
    };
    let options = pb::WriteOptions {
        audit_context: Some(crate::world::object(&[("why", "so")])),
        ..Default::default()
    };
    let event = pb::LogEventRequest { event: Some(event), options: Some(options) };
    ok!(me.audit().log_event(event));
    ok!(me.decisions().create_decision(create("new", decision("ALLOW", 0.5))));
    age(&world, "default", 3).await;
    let before = entries(&me, 10).await;

    let answer = archive(&me, older_than(365)).await;
    assert_eq!((answer.archived_count, answer.first_seq, answer.last_seq), (3, 1, 3));
    assert_eq!(answer.receipt.as_ref().unwrap().audit_seq, 5);
    let lines = segment(folder.path(), &answer);
    assert_eq!((&lines[0]["actor"], &lines[2]["actor"]), (&"ann".into(), &"bob".into()));
    assert_eq!(
        (&lines[0]["ip_address"], &lines[2]["context"]["why"]),
        (&"127.0.0.1".into(), &"so".into())
    );
    assert!(lines[0]["document"].as_str().unwrap().contains("\"final_verdict\":\"ALLOW\""));

    let after = entries(&me, 10).await;
    assert_eq!(after[1], before[0], "what is young is untouched");
    for (before, after) in before[1..].iter().zip(&after[2..]) {
        let mut erased = pb::AuditEntry {
            principal: String::new(),
            actor: String::new(),
            user_id: String::new(),
            ip_address: String::new(),
            user_agent: String::new(),
            request_id: String::new(),
            trace_id: String::new(),
            changes: after.changes.clone(),
            context: None,
            archived: true,
            ..before.clone()
        };
        if after.kind == "event" {
            erased.success = None;
            erased.object_key.clear();
            erased.target = Some(reference(pb::ResourceKind::Unspecified, "k", 1));
        }
        assert_eq!(*after, erased);
        assert!(!after.leaf.is_empty() && after.leaf_hash.len() == 32);
    }
    // The second version is there and the first is not: what it changed is no longer known.
    assert!(after[3].changes.is_none() && before[2].changes.is_some());
    // The entry of the archiving says where it all is, and is never archived itself.
    let made = entry(&me, 5).await;
    assert_eq!((made.action.as_str(), made.kind.as_str()), ("ARCHIVE", "audit_segment"));
    let metadata = made.metadata.clone().unwrap().fields();
    let shown = |name: &str| metadata[name].kind.clone().unwrap();
    use prost_types::value::Kind::{NumberValue, StringValue};
    assert_eq!(shown("name"), StringValue(answer.segment.clone()));
    assert_eq!(
        unhex(&match shown("sha256") {
            StringValue(s) => s,
            _ => panic!(),
        }),
        answer.segment_sha256
    );
    assert_eq!((shown("first_seq"), shown("last_seq")), (NumberValue(1.0), NumberValue(3.0)));
    assert_eq!(made.changes, None);
    // The export tells the same.
    let all = pb::ExportAuditRequest { include_details: true, ..Default::default() };
    let found = crate::audit_export::export(&me, all).await.unwrap();
    found.check();
    let empty: Vec<bool> = found.entries.iter().map(|entry| entry.document.is_empty()).collect();
    assert_eq!(empty, [true, false, true, false, false]);

    // Nothing is left to do; later the rest goes too, and the segments follow one another.
    let nothing = archive(&me, older_than(365)).await;
    assert_eq!((nothing.archived_count, nothing.segment.as_str()), (0, ""));
    assert!(nothing.receipt.unwrap().unchanged);
    age(&world, "default", 5).await;
    let rest = archive(&me, up_to(5)).await;
    assert_eq!((rest.archived_count, rest.first_seq, rest.last_seq), (2, 4, 5));
    segment(folder.path(), &rest);
    assert_eq!(entry(&me, 5).await.metadata, made.metadata);
    assert_eq!(files(&folder.path().join("default")), 2);
    world.close().await;
}

#[tokio::test]
async fn what_is_archived_is_read_truthfully() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    let me = world.anonymous();
    let mut client = me.decisions();
    let mut old = Vec::new();
    old.push(ok!(client.create_decision(create("d", decision("ALLOW", 0.5)))).receipt.unwrap());
    old.push(ok!(client.update_decision(reclassed("d", "two"))).receipt.unwrap());
    old.push(ok!(client.update_decision(reclassed("d", "three"))).receipt.unwrap());
    old.push(ok!(client.create_decision(create("still", decision("DENY", 0.5)))).receipt.unwrap());
    ok!(client.create_decision(create("gone", decision("DENY", 0.5))));
    ok!(client.delete_decision(delete("gone")));
    let newest = ok!(me.policies().create_policy_rule(rule("r", "one"))).receipt.unwrap();
    let at = |receipt: &pb::WriteReceipt| pb::Consistency {
        requirement: Some(pb::consistency::Requirement::AtExactSnapshot(
            receipt.revision.clone().unwrap(),
        )),
    };
    let get_at =
        |id: &str, receipt| pb::GetDecisionRequest { consistency: Some(at(receipt)), ..get(id) };
    let list_at =
        |receipt| pb::ListDecisionsRequest { consistency: Some(at(receipt)), ..Default::default() };
    let before = ok!(client.list_decisions(list_at(&newest))).decisions;
    assert_eq!(before.len(), 2);
    age(&world, "default", 7).await;
    assert_eq!(archive(&me, older_than(365)).await.archived_count, 7);

    let version = |version| pb::GetDecisionRequest { version, ..get("d") };
    for n in [1, 2] {
        fails!(client.get_decision(version(n)), OutOfRange, "REVISION_EXPIRED");
    }
    assert_eq!(ok!(client.get_decision(version(3))).decision.unwrap().retention_class, "three");
    fails!(client.get_decision(version(4)), NotFound, "NOT_FOUND");
    let revisions =
        pb::ListDecisionRevisionsRequest { decision_id: "d".into(), ..Default::default() };
    let revisions = ok!(client.list_decision_revisions(revisions)).revisions;
    let shown: Vec<_> =
        revisions.iter().map(|r| (r.audit_seq, r.action.as_str(), r.decision.is_some())).collect();
    assert_eq!(shown, [(3, "UPDATE", true), (2, "UPDATE", false), (1, "CREATE", false)]);
    for receipt in &old {
        fails!(client.get_decision(get_at("d", receipt)), OutOfRange, "REVISION_EXPIRED");
        fails!(client.list_decisions(list_at(receipt)), OutOfRange, "REVISION_EXPIRED");
        let rules =
            pb::ListPolicyRulesRequest { consistency: Some(at(receipt)), ..Default::default() };
        fails!(me.policies().list_policy_rules(rules), OutOfRange, "REVISION_EXPIRED");
    }
    let many = pb::BatchGetDecisionsRequest {
        decision_ids: vec!["d".into()],
        consistency: Some(at(&old[0])),
        ..Default::default()
    };
    fails!(client.batch_get_decisions(many), OutOfRange, "REVISION_EXPIRED");

    // Every later moment is whole, also where a row has since moved on from a version that is archived: while a list is
    // paged through, say.
    let page = |token: String| pb::ListDecisionsRequest {
        page: Some(pb::PageRequest {
            page_size: 1,
            page_token: token,
            order_by: "id".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let first = ok!(client.list_decisions(page(String::new())));
    ok!(client.update_decision(reclassed("still", "two")));
    ok!(client.update_decision(reclassed("d", "four")));
    ok!(client.undelete_decision(undelete("gone")));
    let token = first.page.unwrap().next_page_token;
    let second = ok!(client.list_decisions(page(token)));
    let paged: Vec<_> = first.decisions.into_iter().chain(second.decisions).collect();
    assert_eq!(ids_of(&paged), ["d", "still"]);
    assert_eq!(paged[1].retention_class, "");
    let mut still = ok!(client.list_decisions(list_at(&newest))).decisions;
    let mut wanted = before.clone();
    for list in [&mut still, &mut wanted] {
        list.sort_by(|a, b| a.id.cmp(&b.id));
    }
    assert_eq!(still, wanted);
    assert_eq!(ok!(client.get_decision(get_at("d", &newest))).decision.unwrap(), wanted[0]);
    fails!(client.get_decision(get_at("gone", &newest)), NotFound, "NOT_FOUND");
    // Archived later, the version that stood there goes as well.
    let head = head(&me).await;
    age(&world, "default", head).await;
    archive(&me, older_than(365)).await;
    fails!(client.get_decision(version(3)), OutOfRange, "REVISION_EXPIRED");
    assert_eq!(ok!(client.get_decision(version(4))).decision.unwrap().retention_class, "four");
    fails!(client.list_decisions(list_at(&newest)), OutOfRange, "REVISION_EXPIRED");
    world.close().await;
}

fn ids_of(decisions: &[pb::Decision]) -> Vec<&str> {
    decisions.iter().map(|decision| decision.id.as_str()).collect()
}

#[tokio::test]
async fn what_cannot_be_archived_is_refused_and_nothing_happens() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    let me = world.anonymous();
    for id in ["a", "b", "c"] {
        ok!(me.decisions().create_decision(create(id, decision("ALLOW", 0.5))));
    }
    age(&world, "default", 2).await;
    let span = |seconds, nanos| pb::ArchiveAuditEntriesRequest {
        until: Some(Until::OlderThan(prost_types::Duration { seconds, nanos })),
        ..Default::default()
    };
    for (request, field) in [
        (pb::ArchiveAuditEntriesRequest::default(), "older_than"),
        (span(-1, 0), "older_than"),
        (up_to(0), "to_seq"),
        (up_to(4), "to_seq"),
        (pb::ArchiveAuditEntriesRequest { max_entries: -1, ..up_to(1) }, "max_entries"),
        (pb::ArchiveAuditEntriesRequest { max_entries: 10_001, ..up_to(1) }, "max_entries"),
    ] {
        let mut audit = me.audit();
        let call = audit.archive_audit_entries(request);
        let status = fails!(call, InvalidArgument, "FIELD_INVALID");
        assert_eq!(wrong_fields(&status), [field], "{status:?}");
    }
    for request in [span(DAY - 1, 999_999_999), up_to(3)] {
        let mut audit = me.audit();
        let call = audit.archive_audit_entries(request);
        let status = fails!(call, FailedPrecondition, "RETENTION_FLOOR");
        assert_eq!(info(&status)["keep_min_days"], "1");
        assert!(status.message().contains("audit_keep_min_days"), "{status:?}");
    }
    let rehearsed = pb::ArchiveAuditEntriesRequest {
        options: Some(pb::WriteOptions { validate_only: true, ..Default::default() }),
        ..older_than(365)
    };
    let rehearsed = archive(&me, rehearsed).await;
    assert_eq!((rehearsed.archived_count, rehearsed.last_seq), (2, 2));
    assert_eq!((rehearsed.segment.as_str(), &rehearsed.receipt), ("", &None));
    assert_eq!(files(folder.path()), 0);
    assert!(entries(&me, 10).await.iter().all(|entry| !entry.archived));
    world.close().await;

    // Without a place there is no archiving, and none that cannot be written to.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (place, code) in [(None, "NOT_CONFIGURED"), (file.to_str(), "BACKEND_UNAVAILABLE")] {
        let place: Vec<_> = place.map(|place| ("audit_archive_dir", place)).into_iter().collect();
        let world = World::with(&place).await;
        let me = world.anonymous();
        ok!(me.decisions().create_decision(create("a", decision("ALLOW", 0.5))));
        age(&world, "default", 1).await;
        let status: Status = match code {
            "NOT_CONFIGURED" => {
                let mut audit = me.audit();
                let call = audit.archive_audit_entries(up_to(1));
                fails!(call, FailedPrecondition, "NOT_CONFIGURED")
            }
            _ => fails!(
                me.audit().archive_audit_entries(up_to(1)),
                Unavailable,
                "BACKEND_UNAVAILABLE"
            ),
        };
        assert!(status.message().contains("audit_archive_dir"), "{status:?}");
        assert!(!entry(&me, 1).await.archived);
        assert_eq!(head(&me).await, 1);
        world.close().await;
    }
}

#[tokio::test]
async fn archiving_is_a_write_like_any_other() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    world.tenant("other").await;
    let (me, other) = (world.anonymous(), world.as_tenant("other"));
    for who in [&me, &other] {
        for n in 0..7 {
            ok!(who.decisions().create_decision(create(&format!("d{n}"), decision("ALLOW", 0.5))));
        }
    }
    age(&world, "default", 7).await;
    age(&world, "other", 7).await;
    let once = |max_entries| pb::ArchiveAuditEntriesRequest {
        max_entries,
        options: Some(request("key-1")),
        ..older_than(30)
    };
    let first = archive(&me, once(2)).await;
    assert_eq!((first.first_seq, first.last_seq), (1, 2));
    let again = archive(&me, once(2)).await;
    let replayed = pb::WriteReceipt { replayed: true, ..first.receipt.clone().unwrap() };
    assert_eq!(again, pb::ArchiveAuditEntriesResponse { receipt: Some(replayed), ..first.clone() });
    assert_eq!(files(&folder.path().join("default")), 1, "nothing was written for the repetition");
    let mut audit = me.audit();
    let call = audit.archive_audit_entries(once(3));
    fails!(call, InvalidArgument, "REQUEST_ID_REUSED");
    // The other tenant's log is as it was, and so is its folder.
    assert!(entries(&other, 10).await.iter().all(|entry| !entry.archived));
    assert_eq!(files(folder.path()), 1);

    // Several at once: each entry is in one segment, whoever comes late is told to come again.
    let calls = (0..4).map(|_| {
        let mut client = me.audit();
        let request = pb::ArchiveAuditEntriesRequest { max_entries: 2, ..older_than(30) };
        async move { client.archive_audit_entries(request).await }
    });
    let mut made = vec![first];
    for answer in futures_util::future::join_all(calls).await {
        match answer {
            Ok(answer) => made.push(answer.into_inner()),
            Err(status) => assert_eq!(crate::world::reason(&status), "SERIALIZATION_FAILURE"),
        }
    }
    loop {
        let request = pb::ArchiveAuditEntriesRequest { max_entries: 2, ..older_than(30) };
        let answer = archive(&me, request).await;
        if answer.archived_count == 0 {
            break;
        }
        made.push(answer);
    }
    made.retain(|answer| answer.archived_count > 0);
    made.sort_by_key(|answer| answer.first_seq);
    let mut next = 1;
    for answer in &made {
        assert_eq!(answer.first_seq, next);
        next = answer.last_seq + 1;
        segment(folder.path(), answer);
    }
    assert_eq!(next, 8);
    assert_eq!(archive(&other, older_than(30)).await.archived_count, 7);
    world.close().await;
}

#[tokio::test]
async fn a_failure_behind_the_file_leaves_the_log_whole() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    let me = world.anonymous();
    for id in ["a", "b"] {
        ok!(me.decisions().create_decision(create(id, decision("ALLOW", 0.5))));
    }
    age(&world, "default", 2).await;
    let before = entries(&me, 10).await;
    let superuser = world.superuser().await;
    // The server dies between the two, as far as the database can tell.
    let kill = "CREATE FUNCTION casebook.kill() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN RAISE EXCEPTION 'killed'; END $$;
        CREATE TRIGGER kill BEFORE UPDATE ON casebook.audit_archive FOR EACH ROW WHEN (NEW.seq > 0)
          EXECUTE FUNCTION casebook.kill()";
    superuser.batch_execute(kill).await.unwrap();
    fails!(me.audit().archive_audit_entries(older_than(30)), Internal, "INTERNAL");
    assert_eq!(files(&folder.path().join("default")), 1, "the file came first");
    assert_eq!(entries(&me, 10).await, before, "nothing is erased, and nothing noted");
    superuser.batch_execute("DROP TRIGGER kill ON casebook.audit_archive").await.unwrap();
    drop(superuser);
    let answer = archive(&me, older_than(30)).await;
    assert_eq!(segment(folder.path(), &answer).len(), 2);
    assert_eq!(entries(&me, 10).await.len(), 3);
    // The entry of the archiving tells the segment from what a failure left behind.
    assert_eq!(files(&folder.path().join("default")), 2);
    world.close().await;
}

#[tokio::test]
async fn the_servers_own_role_can_only_erase_what_is_old() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    let me = world.anonymous();
    for id in ["a", "b"] {
        ok!(me.decisions().create_decision(create(id, decision("ALLOW", 0.5))));
    }
    age(&world, "default", 1).await;
    let app = connect(&crate::world::config_of(&world.database).await).await;
    app.batch_execute("SET ROLE casebook_app; SET search_path = wall, pg_catalog").await.unwrap();
    let refused = async |sql: &str| {
        let error = app.batch_execute(sql).await.expect_err(sql);
        error.as_db_error().unwrap().message().to_owned()
    };
    assert_eq!(refused("SELECT wall.archive_log(0, 1)").await, "no tenant is set");
    app.batch_execute("SET casebook.tenant = 'default'").await.unwrap();
    for sql in [
        "UPDATE log SET document = NULL",
        "DELETE FROM log",
        "UPDATE audit_archive SET seq = 1",
        "INSERT INTO audit_archive (seq) VALUES (1)",
    ] {
        assert!(refused(sql).await.starts_with("permission denied for view"), "{sql}");
    }
    assert!(refused("SELECT wall.archive_log(0, 2)").await.contains("last 24 hours"));
    // From another place than where the last archiving ended there is nothing to do.
    for sql in ["SELECT wall.archive_log(1, 2)", "SELECT wall.archive_log(0, 0)"] {
        assert!(app.query(sql, &[]).await.unwrap().is_empty(), "{sql}");
    }
    let hashes =
        "SELECT seq, time, kind, uid, id, version, action, leaf, leaf_hash FROM log ORDER BY seq";
    let hashes = async || {
        let rows = app.query(hashes, &[]).await.unwrap();
        rows.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, Vec<u8>>(8))).collect::<Vec<_>>()
    };
    let before = hashes().await;
    app.batch_execute("SET casebook.tenant = 'other'").await.unwrap();
    let other = app.query("SELECT * FROM wall.archive_log(0, 1)", &[]).await.unwrap();
    assert_eq!(other[0].get::<_, i64>(0), 0, "another tenant has nothing there");
    app.batch_execute("SET casebook.tenant = 'default'").await.unwrap();
    assert!(!entry(&me, 1).await.archived);
    let done = app.query("SELECT * FROM wall.archive_log(0, 1)", &[]).await.unwrap();
    assert_eq!(done[0].get::<_, i64>(0), 1);
    assert!(entry(&me, 1).await.archived);
    assert_eq!(hashes().await, before);
    drop(app);
    world.close().await;
}

#[tokio::test]
async fn ten_thousand_go_at_once_and_quickly() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    crate::audit_export::fill(&world, 20_000, 1000).await;
    // Two versions of each resource, and no statistics.
    let versions = "UPDATE casebook.log SET version = 1 + seq % 2, id = 'd-' || seq / 2,
        uid = md5((seq / 2)::text)::uuid";
    world.superuser().await.batch_execute(versions).await.unwrap();
    age(&world, "default", 20_000).await;
    let me = world.anonymous();
    let began = std::time::Instant::now();
    let answer = archive(&me, older_than(30)).await;
    println!("10,000 entries archived in {:?}", began.elapsed());
    assert_eq!((answer.archived_count, answer.last_seq), (10_000, 10_000));
    assert!(began.elapsed() < std::time::Duration::from_secs(25), "{:?}", began.elapsed());
    let count = "SELECT count(*) FROM casebook.log WHERE document IS NULL AND salt = ''";
    let erased: i64 = world.superuser().await.query_one(count, &[]).await.unwrap().get(0);
    // Of each resource the second version stands; the first resource has no other, and the last one's next is not archived.
    assert_eq!(erased, 4999);
    world.close().await;
}

#[tokio::test]
async fn an_operator_archives_by_command() {
    let folder = open_folder();
    let world = archiving(folder.path()).await;
    world.tenant("acme").await;
    let acme = world.as_tenant("acme");
    for id in ["a", "b"] {
        ok!(acme.decisions().create_decision(create(id, decision("ALLOW", 0.5))));
    }
    age(&world, "acme", 1).await;
    let run = async |days: &str, address: &str| {
        let arguments = ["audit", "archive", "--tenant", "acme", "--older-than", days];
        let mut command = crate::process::casebook(&arguments);
        command.args(["--address", address]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, said, _) = run("365d", &world.address).await;
    let sha256 = Sha256::digest(
        std::fs::read(folder.path().join(said.split("  ").nth(1).unwrap())).unwrap(),
    );
    assert_eq!(code, Some(0));
    assert!(said.starts_with("1-1  acme/") && said.ends_with(&format!("  {sha256:x}\n")), "{said}");
    assert_eq!(run("365d", &world.address).await.0, Some(0), "nothing is left, and that is well");
    let (code, _, said) = run("1h", &world.address).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("audit_keep_min_days"), "{said}");
    assert_eq!(run("365d", "http://127.0.0.1:1").await.0, Some(3));
    world.close().await;
}

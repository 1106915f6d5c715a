//! What PostgreSQL really does for the service at a hundred thousand rows per tenant: which indexes, how many rows.

use crate::schema::{columns_of, explain_any, store_on};
use crate::world::{config_of, connect, drop_database, new_database};
use casebook::store::filter::{Condition, Field, Filter, Op, Value};
use casebook::store::list::{
    Cursor, ListQuery, Listing, MAX_EXACT_COUNT, Order, Window, estimated_rows,
};
use casebook::store::metrics_snapshot::{self, Series};
use casebook::store::postgres::{Conn, Lane};
use casebook::store::training_example::{self, ClaimTrainingBatch};
use casebook::store::{
    analysis, chunk, critic_output, decision, document, log, model_checkpoint, r#override,
    policy_rule, precedent, precedent_reference, queries, service_health,
};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

const ROWS: i64 = 100_000;

/// Two tenants with as much each, straight into the tables. The log lies in two months.
const FILL: &str = r#"
SET synchronous_commit = off;
SET session_replication_role = replica;
CREATE TABLE casebook.log_before PARTITION OF casebook.log FOR VALUES FROM (MINVALUE) TO ('2001-01-01');
CREATE TEMP TABLE aside AS SELECT indexname, indexdef FROM pg_indexes
  WHERE schemaname = 'casebook' AND tablename = 'decision' AND indexname <> 'decision_pkey';
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT indexname FROM aside LOOP EXECUTE format('DROP INDEX casebook.%I', name); END LOOP;
END $$;
INSERT INTO casebook.decision (tenant_id, uid, id, version, create_time, update_time, delete_time, created_by,
  updated_by, input_data, final_verdict, reason, avg_confidence, ambiguity, verdict_scores, citations, evidence,
  policy_rules, state, model_version, trace_id, decide_time, processing_time_us, metadata, labels, retention_class,
  subject_id, case_hash)
SELECT t, ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'd' || i, 1, at, at,
  CASE WHEN i % 50 = 0 THEN at END, '', '', '{}',
  CASE WHEN i % 1000 = 1 THEN 'REVIEW' WHEN i % 3 = 0 THEN 'DENY' ELSE 'ALLOW' END, '',
  CASE WHEN i % 10 > 0 THEN (i * 7919 % 100000) / 100000.0 END, NULL, '{}', '[]', '[]', '[]', 1, 'm' || i % 4, '',
  at, NULL, jsonb_build_object('n', i), jsonb_build_object('team', (i % 20000)::text), '',
  CASE WHEN i % 2 = 0 THEN 's' || i % 4000 ELSE '' END, ''
FROM unnest(ARRAY['a', 'b']) t, generate_series(1, 100000) i,
  LATERAL (SELECT '2026-01-01'::timestamptz + i * interval '1 second' AS at);
DO $$ DECLARE def text; BEGIN
  FOR def IN SELECT indexdef FROM aside LOOP EXECUTE def; END LOOP;
END $$;
INSERT INTO casebook.critic_output (tenant_id, uid, id, version, create_time, update_time, delete_time, created_by,
  updated_by, decision_uid, decision_id, critic, verdict, confidence, justification, weight, priority, config_version,
  evaluate_time, evidence_sources, details)
SELECT tenant_id, uid, 'c', 1, create_time, update_time, delete_time, '', '', uid, id, 'c', 'ALLOW', 0.5, '', NULL,
  '', '', NULL, '[]', '{}' FROM casebook.decision WHERE uid < '00000000-0000-4000-8000-000000010000';
INSERT INTO casebook.override (tenant_id, uid, id, version, create_time, update_time, delete_time, created_by,
  updated_by, decision_uid, decision_id, original_outcome, proposed_outcome, justification, reason_category,
  reviewer_id, reviewer_name, reviewer_role, reviewer_email, urgent, priority, expire_time, stakeholder_input,
  supporting_documents, additional_context)
SELECT tenant_id, uid, id, 1, create_time, update_time, delete_time, '', '', uid, id, 'ALLOW', 'DENY', '', '', '',
  '', '', '', false, 0, NULL, '', '[]', '{}' FROM casebook.decision
  WHERE uid < '00000000-0000-4000-8000-000000010000';
INSERT INTO casebook.document (tenant_id, uid, id, version, create_time, update_time, delete_time, created_by,
  updated_by, filename, original_filename, source_path, size_bytes, mime_type, content_hash, total_chunks, status,
  metadata, labels, owner_id, content, retention_class, subject_id)
SELECT tenant_id, uid, id, 1, create_time, update_time, delete_time, '', '', id || '.pdf', '', '/in', NULL, '',
  CASE WHEN uid::text LIKE '%7' THEN repeat('0', 56) || right(uid::text, 8) ELSE '' END, 10, 'pending', metadata,
  labels, '', '{}', '', '' FROM casebook.decision WHERE uid < '00000000-0000-4000-8000-000000005000';
INSERT INTO casebook.analysis (tenant_id, uid, id, version, create_time, update_time, delete_time, created_by,
  updated_by, document_uid, document_id, analysis_version, category, summary, tags, raw_response, provider_used,
  model_used, trace_id, owner_id)
SELECT tenant_id, ('00000001-0000-4000-8000-' || lpad(n || right(uid::text, 10), 12, '0'))::uuid, id || '-' || n, 1,
  create_time, update_time, delete_time, '', '', uid, id, n, 'c' || n, '', '[]', '{}', '', '', '', ''
FROM casebook.document, generate_series(1, 3) n;
INSERT INTO casebook.chunk (tenant_id, uid, id, version, create_time, update_time, delete_time, created_by, updated_by,
  document_uid, document_id, chunk_index, text, metadata)
SELECT tenant_id, ('00000002-0000-4000-8000-' || lpad(n || right(uid::text, 10), 12, '0'))::uuid, id || '-' || n, 1,
  create_time, update_time, delete_time, '', '', uid, id, n, 'text', jsonb_build_object('n', id || '-' || n)
FROM casebook.document, generate_series(0, 9) n;
INSERT INTO casebook.policy_rule (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by, name,
  rule_type, severity, description, definition, active)
SELECT tenant_id, uid, id, 1, create_time, update_time, '', '', '', '', '', '', '{}', true FROM casebook.decision
  WHERE uid < '00000000-0000-4000-8000-000000005000';
INSERT INTO casebook.tenant (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by,
  display_name, state, strict_references)
SELECT 'system', uid, id, 1, create_time, update_time, '', '', '', 1, false FROM casebook.decision
  WHERE tenant_id = 'a' AND uid < '00000000-0000-4000-8000-000000005000';
INSERT INTO casebook.api_token (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by,
  display_name, roles)
SELECT tenant_id, uid, id, 1, create_time, update_time, '', '', '', 1 FROM casebook.decision
  WHERE uid < '00000000-0000-4000-8000-000000005000';
INSERT INTO casebook.model_checkpoint (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by,
  model_name, framework, model_version, checkpoint_path, metrics, training_config, active, digest)
SELECT tenant_id, uid, id, 1, create_time, update_time, '', '', 'm' || right(id, 2), 'f', id, '', '{}', '{}',
  length(id) = 3, '' FROM casebook.decision WHERE uid < '00000000-0000-4000-8000-000000005000';
INSERT INTO casebook.training_example (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by,
  framework, claim_id, claim_text, evidence, validity, confidence, metadata, used_in_training, training_batch_id)
SELECT tenant_id, uid, id, 1, create_time, update_time, '', '', 'f', id, '', '{}', true, 0.5, '{}', used,
  CASE WHEN used THEN 'b' || right(id, 2) ELSE '' END
FROM casebook.decision, LATERAL (SELECT final_verdict <> 'DENY' AS used) AS u
WHERE uid < '00000000-0000-4000-8000-000000020000';
INSERT INTO casebook.service_health (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by,
  service_name, instance_id, status, last_heartbeat_time, metadata)
SELECT tenant_id, uid, id, 1, create_time, update_time, '', '', 's' || right(id, 1), id, 'up', create_time, '{}'
FROM casebook.decision WHERE uid < '00000000-0000-4000-8000-000000005000';
INSERT INTO casebook.metrics_snapshot (tenant_id, uid, id, version, create_time, update_time, created_by, updated_by,
  source, metrics, labels, snapshot_time)
SELECT tenant_id, uid, id, 1, create_time, update_time, '', '', 's' || right(id, 1), '{"a": 1}', '{}', create_time
FROM casebook.decision WHERE uid < '00000000-0000-4000-8000-000000020000';
INSERT INTO casebook.log (tenant_id, seq, time, kind, uid, id, version, action, method, principal, actor, ip_address,
  user_agent, request_id, trace_id, context, document, salt, leaf, leaf_hash)
SELECT t, i, CASE WHEN i > 50000 THEN now() ELSE '2000-12-01'::timestamptz END, 'decision',
  ('00000000-0000-4000-8000-' || lpad((1 + i % 50000)::text, 12, '0'))::uuid, 'd' || 1 + i % 50000,
  1 + i / 50001, 'CREATE', 'm', 'p' || i % 100, '', '', '', '', '', NULL, '{}', '', '', ''
FROM unnest(ARRAY['a', 'b']) t, generate_series(1, 100000) i;
INSERT INTO casebook.log_head (tenant_id, seq) VALUES ('a', 100000), ('b', 100000);
ANALYZE;
"#;

/// Precedents in a chain, each referring to the one before.
const FILL_PRECEDENTS: &str = r#"
INSERT INTO casebook.precedent (tenant_id, id, uid, version, create_time, update_time, delete_time, created_by,
  updated_by, decision_id, case_hash, input, summary, final_verdict, final_reason, tags, context, metadata, labels,
  occur_time, status, superseded_by_id, retention_class, subject_id)
SELECT tenant_id, id, uid, 1, create_time, update_time, delete_time, '', '', id, 'h' || substr(id, 3), '{}', '',
  final_verdict, '', jsonb_build_array('t' || substr(id, 3)), '', metadata, labels, decide_time, 1, '', '', subject_id
FROM casebook.decision WHERE uid < '00000000-0000-4000-8000-000000020000';
INSERT INTO casebook.precedent_reference (tenant_id, id, uid, version, create_time, update_time, delete_time,
  created_by, updated_by, from_precedent_id, to_precedent_id, reference_type, metadata, to_precedent_uid)
SELECT tenant_id, id, uid, 1, create_time, update_time, delete_time, '', '', id, 'd' || substr(id, 2)::int - 1,
  'semantic', metadata, uid
FROM casebook.precedent;
ANALYZE casebook.precedent, casebook.precedent_reference;
"#;

/// One scan of a table, with what it is driven by.
#[derive(Clone, Debug)]
struct Scan {
    kind: String,
    #[allow(dead_code, reason = "shown when a plan is not the intended one")]
    table: String,
    /// That of the partitioned table, where the table is a partition.
    index: String,
    condition: String,
    /// Rows looked at, where the plan was run.
    rows: f64,
}

#[derive(Debug)]
struct Plan {
    scans: Vec<Scan>,
    sorts: usize,
    text: String,
}

impl Plan {
    fn read(json: &Json, names: &Names) -> Self {
        let mut plan = Plan { scans: Vec::new(), sorts: 0, text: String::new() };
        plan.walk(&json[0]["Plan"], names, "");
        plan.text = format!("{} sorts, {:#?}", plan.sorts, plan.scans);
        plan
    }

    fn walk(&mut self, node: &Json, names: &Names, table: &str) {
        let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| node[name].as_f64().unwrap_or_default();
        let (kind, mut table) = (text("Node Type"), table.to_owned());
        if !text("Relation Name").is_empty() {
            table = text("Relation Name");
        }
        // An incremental sort, of rows that come in order but for the last key, can stop early.
        if kind == "Sort" {
            self.sorts += 1;
        }
        let is_scan = kind == "Seq Scan" || !text("Index Name").is_empty();
        if is_scan && names.large.contains(&table) {
            let index = text("Index Name");
            self.scans.push(Scan {
                kind,
                table: table.clone(),
                index: names.parents.get(&index).cloned().unwrap_or(index),
                condition: text("Index Cond"),
                rows: (number("Actual Rows")
                    + number("Rows Removed by Filter")
                    + number("Rows Removed by Index Recheck"))
                    * number("Actual Loops"),
            });
        }
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.walk(child, names, &table);
        }
    }

    /// No table of a tenant's is read from end to end, nor an index for all of the tenant.
    fn is_driven(&self) -> bool {
        self.scans.iter().all(|scan| {
            let beyond_tenant = scan.condition.matches('=').count()
                + scan.condition.matches('<').count()
                + scan.condition.matches('>').count()
                // Such an index knows nothing of tenants: what is contained drives it alone.
                + scan.condition.matches("@>").count();
            scan.kind != "Seq Scan" && beyond_tenant > 1
        })
    }

    fn rows(&self) -> f64 {
        self.scans.iter().map(|scan| scan.rows).sum()
    }

    #[track_caller]
    fn uses(&self, index: &str) -> &Self {
        assert!(self.scans.iter().any(|scan| scan.index == index), "not by {index}: {}", self.text);
        assert!(!self.scans.iter().any(|scan| scan.kind == "Seq Scan"), "{}", self.text);
        self
    }

    #[track_caller]
    fn unsorted(&self) -> &Self {
        assert_eq!(self.sorts, 0, "{}", self.text);
        self
    }

    #[track_caller]
    fn looks_at(&self, most: f64) -> &Self {
        assert!(self.rows() <= most, "{} rows rather than {most}: {}", self.rows(), self.text);
        self
    }
}

/// A filled database, entered as the service enters it.
struct Filled {
    conn: Conn,
    names: Names,
}

struct Names {
    /// Indexes of partitions, and the index they are part of.
    parents: BTreeMap<String, String>,
    /// The tables with many rows. A scan of any other is as good as its index.
    large: BTreeSet<String>,
}

impl Filled {
    async fn enter(conn: Conn, superuser: &Client, tenant: &str) -> Self {
        let sql = "SELECT c.relname::text, p.relname::text FROM pg_inherits i \
                   JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent";
        let rows = superuser.query(sql, &[]).await.unwrap();
        let parents = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        conn.client().batch_execute("BEGIN").await.unwrap();
        let set = queries().find(|query| query.name() == "wall.SET_TENANT").unwrap();
        conn.client().query(set.sql(), &[&tenant]).await.unwrap();
        let sql = "SELECT relname::text FROM pg_class WHERE relnamespace = 'casebook'::regnamespace \
                   AND relkind = 'r' AND reltuples >= 1000";
        let rows = superuser.query(sql, &[]).await.unwrap();
        let large = rows.iter().map(|row| row.get(0)).collect();
        Self { conn, names: Names { parents, large } }
    }

    async fn leave(self) {
        self.conn.client().batch_execute("ROLLBACK").await.unwrap();
        self.conn.done();
    }

    /// Runs a statement with these values, and says how.
    async fn run(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Plan {
        let sql = format!("EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF, FORMAT JSON) {sql}");
        let row = match self.conn.client().query_one(&sql, params).await {
            Ok(row) => row,
            Err(error) => panic!("{error:?}\n{sql}"),
        };
        let Text(plan) = row.get(0);
        Plan::read(&serde_json::from_slice(&plan).unwrap(), &self.names)
    }

    async fn page(&self, listing: &Listing, query: &ListQuery) -> Plan {
        let (sql, params) = listing.page(&columns_of(listing), query);
        self.run(&sql, &params.as_sql()).await
    }
}

/// The bytes of a value in text.
struct Text(Vec<u8>);

impl tokio_postgres::types::FromSql<'_> for Text {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &[u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }
    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }
}

fn order(listing: &'static Listing, name: &str, desc: bool) -> Vec<Order> {
    vec![Order { field: Field::find(listing.fields, name).unwrap(), desc }]
}

fn is(listing: &'static Listing, path: &str, op: Op) -> Filter {
    let mut keys = path.split('.').map(str::to_owned);
    let field = Field::find(listing.fields, &keys.next().unwrap()).unwrap();
    Filter::Field(Condition::new(field, keys.collect(), op).unwrap())
}

fn equals(listing: &'static Listing, path: &str, text: &str) -> Filter {
    is(listing, path, Op::Equals(Value::Text(text.into())))
}

/// Two pages of the newest decisions that a filter leaves.
fn newest(filter: Filter) -> ListQuery {
    let order = order(&decision::LISTING, "decide_time", true);
    ListQuery { filter, order, limit: 51, ..ListQuery::default() }
}

/// Where the listing of the newest decisions is after the i-th row.
fn after(query: &ListQuery, i: i64) -> Option<Cursor> {
    let micros = (1_767_225_600 + i) * 1_000_000;
    let uid = format!("00000000-0000-4000-8000-{i:012}");
    let cursor = Cursor::parse(&query.order, &[Some(micros.to_string()), Some(uid)]);
    assert!(cursor.is_some());
    cursor
}

#[tokio::test]
async fn indexes_serve_a_hundred_thousand_rows() {
    let database = new_database(true).await;
    let superuser = connect(&config_of(&database).await).await;
    let begin = std::time::Instant::now();
    superuser.batch_execute(FILL).await.unwrap();
    superuser.batch_execute(FILL_PRECEDENTS).await.unwrap();
    println!("filled in {:?}", begin.elapsed());
    let store = store_on(&database).await;

    // Lists, on the lane and with the settings that they run with.
    let filled = Filled::enter(store.connection(Lane::Work).await.unwrap(), &superuser, "a").await;
    lists_of_decisions(&filled).await;
    paging(&filled).await;
    other_lists(&filled).await;
    precedents(&filled).await;
    totals(&filled).await;
    filled.leave().await;

    let mut wrong = Vec::new();
    // The batched lanes plan once, for whatever tenant and values: one without rows may be the first.
    for lane in [Lane::Read, Lane::Write] {
        for tenant in ["a", "nobody", "system"] {
            let conn = store.connection(lane).await.unwrap();
            let filled = Filled::enter(conn, &superuser, tenant).await;
            for query in undriven(&filled).await {
                wrong.push(format!("{lane:?}, first in {tenant}: {query}"));
            }
            if (lane, tenant) == (Lane::Write, "a") {
                taking_examples(&filled).await;
            }
            filled.leave().await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let filled = Filled::enter(store.connection(Lane::Read).await.unwrap(), &superuser, "b").await;
    by_id(&filled).await;
    filled.leave().await;
    store.close();
    drop(superuser);
    println!("all in {:?}", begin.elapsed());
    drop_database(&database).await;
}

async fn lists_of_decisions(filled: &Filled) {
    let of = &decision::LISTING;
    filled
        .page(of, &newest(Filter::default()))
        .await
        .uses("decision_time")
        .unsorted()
        .looks_at(52.0);
    let rare = newest(equals(of, "final_verdict", "REVIEW"));
    filled.page(of, &rare).await.uses("decision_verdict").unsorted().looks_at(52.0);
    let subject = newest(equals(of, "subject_id", "s44"));
    filled.page(of, &subject).await.uses("decision_subject").unsorted().looks_at(60.0);
    let mut json = vec![
        is(of, "metadata.n", Op::Equals(Value::Int(4711))),
        is(of, "metadata.n", Op::In(vec![Value::Int(4711), Value::Int(4712)])),
    ];
    // Some of them are in the statistics' sample, by chance.
    json.extend((0..100).map(|team| equals(of, "labels.team", &team.to_string())));
    for filter in json {
        // The index knows nothing of tenants.
        filled.page(of, &newest(filter)).await.uses("decision_json").looks_at(250.0);
    }
    let below =
        |bound: f64| Op::Range { gt: None, gte: None, lt: Some(Value::Float(bound)), lte: None };
    // What is common is found on the way through the newest; what is rare by its own index.
    let common = newest(is(of, "avg_confidence", below(0.6)));
    filled.page(of, &common).await.uses("decision_time").unsorted().looks_at(200.0);
    let rare = newest(is(of, "avg_confidence", below(0.001)));
    filled.page(of, &rare).await.uses("decision_confidence").looks_at(200.0);
    let least = order(of, "avg_confidence", false);
    let least = ListQuery { order: least, ..newest(Filter::default()) };
    filled.page(of, &least).await.uses("decision_confidence").unsorted().looks_at(52.0);
}

/// Far into a listing at a snapshot, with nothing and with something changed since.
async fn paging(filled: &Filled) {
    let of = &decision::LISTING;
    for snapshot in [ROWS, ROWS - 10] {
        let mut query = newest(Filter::default());
        query.snapshot = Some(snapshot);
        for i in [ROWS, ROWS / 2, 51] {
            query.after = after(&query, i);
            let plan = filled.page(of, &query).await;
            plan.uses("decision_time").looks_at(300.0);
            let scan = plan.scans.iter().find(|scan| scan.index == "decision_time").unwrap();
            assert!(scan.condition.contains("ROW(decide_time, uid) < ROW("), "{}", plan.text);
        }
        query.filter = equals(of, "final_verdict", "REVIEW");
        query.after = after(&query, ROWS / 2);
        filled.page(of, &query).await.uses("decision_verdict").looks_at(300.0);
    }
}

async fn other_lists(filled: &Filled) {
    let by_seq = ListQuery {
        show_deleted: true,
        order: order(&log::LISTING, "seq", true),
        limit: 51,
        ..ListQuery::default()
    };
    filled.page(&log::LISTING, &by_seq).await.uses("log_pkey").unsorted().looks_at(110.0);
    let deep = Cursor::parse(&by_seq.order, &[Some("20000".into()), Some(Uuid::nil().to_string())]);
    let up_to = Op::Range { gt: None, gte: None, lt: None, lte: Some(Value::Int(ROWS)) };
    let deep = ListQuery { after: deep, filter: is(&log::LISTING, "seq", up_to), ..by_seq.clone() };
    filled.page(&log::LISTING, &deep).await.uses("log_pkey").unsorted().looks_at(110.0);
    // A piece of an export.
    let (gt, lte) = (Some(Value::Int(20_000)), Some(Value::Int(20_500)));
    let range = Op::Range { gt, gte: None, lt: None, lte };
    let filter = Filter::All(vec![
        is(&log::LISTING, "seq", range),
        equals(&log::LISTING, "action", "DELETE"),
    ]);
    let oldest = order(&log::LISTING, "seq", false);
    let piece = ListQuery { filter, order: oldest, limit: 500, ..by_seq.clone() };
    filled.page(&log::LISTING, &piece).await.uses("log_pkey").looks_at(505.0);
    let entity = log::of_resource("decision", "d4711", None).unwrap();
    let entity = ListQuery { filter: entity, ..by_seq.clone() };
    filled.page(&log::LISTING, &entity).await.uses("log_entity").looks_at(4.0);

    for (listing, index, whose) in [
        (&critic_output::LISTING, "critic_output_time", "critic_output_id"),
        (&r#override::LISTING, "override_time", "override_decision"),
        (&policy_rule::LISTING, "policy_rule_time", ""),
        (&document::LISTING, "document_time", ""),
        (&analysis::LISTING, "analysis_time", ""),
        (&model_checkpoint::LISTING, "model_checkpoint_time", ""),
        (&training_example::LISTING, "training_example_time", ""),
        (&service_health::LISTING, "service_health_time", ""),
        (&metrics_snapshot::LISTING, "metrics_snapshot_time", ""),
    ] {
        let time = match listing.kind {
            "service_health" => "last_heartbeat_time",
            "metrics_snapshot" => "snapshot_time",
            _ => "create_time",
        };
        let order = order(listing, time, true);
        let all = ListQuery { order, limit: 51, ..ListQuery::default() };
        filled.page(listing, &all).await.uses(index).unsorted().looks_at(52.0);
        if !whose.is_empty() {
            let parent = Some(("d.decision_id", "d4711".to_owned()));
            let of_one = ListQuery { parent, ..all };
            filled.page(listing, &of_one).await.uses(whose).looks_at(2.0);
        }
    }
    of_documents(filled).await;
    of_models_and_telemetry(filled).await;
}

async fn of_documents(filled: &Filled) {
    let of = &document::LISTING;
    let newest = ListQuery {
        order: order(of, "create_time", true),
        limit: 51,
        parent: Some(("d.content_hash", format!("{:064}", 4717))),
        ..ListQuery::default()
    };
    filled.page(of, &newest).await.uses("document_hash").unsorted().looks_at(2.0);
    let parent = Some(("d.document_id", "d4711".to_owned()));
    let of = &analysis::LISTING;
    let latest = ListQuery {
        order: order(of, "analysis_version", true),
        limit: 51,
        parent: parent.clone(),
        ..ListQuery::default()
    };
    filled.page(of, &latest).await.uses("analysis_document").unsorted().looks_at(3.0);
    let of = &chunk::LISTING;
    let by_place = ["document_id", "chunk_index"].map(|name| order(of, name, false).remove(0));
    let all = ListQuery { order: by_place.into(), limit: 51, ..ListQuery::default() };
    filled.page(of, &all).await.uses("chunk_document").unsorted().looks_at(52.0);
    let of_one = ListQuery { parent, ..all };
    filled.page(of, &of_one).await.uses("chunk_document").unsorted().looks_at(10.0);
    let found = ListQuery { filter: equals(of, "metadata.n", "d4711-3"), ..of_one };
    filled.page(of, &found).await.looks_at(10.0);
}

async fn precedents(filled: &Filled) {
    let of = &precedent::LISTING;
    let order = |listing, name| order(listing, name, true);
    let newest = |filter| ListQuery {
        filter,
        order: order(of, "occur_time"),
        limit: 51,
        ..ListQuery::default()
    };
    let all = newest(Filter::default());
    filled.page(of, &all).await.uses("precedent_time").unsorted().looks_at(53.0);
    for (filter, index, most) in [
        (equals(of, "final_verdict", "REVIEW"), "precedent_verdict", 21.0),
        (equals(of, "subject_id", "s44"), "precedent_subject", 10.0),
        (equals(of, "case_hash", "h4711"), "precedent_case", 10.0),
        (equals(of, "labels.team", "4711"), "precedent_json", 10.0),
        (
            is(of, "tags", Op::ContainsAll(vec![Value::Text("t4711".into())])),
            "precedent_tags",
            10.0,
        ),
    ] {
        filled.page(of, &newest(filter)).await.uses(index).looks_at(most);
    }

    let of = &precedent_reference::LISTING;
    for snapshot in [None, Some(ROWS)] {
        for (column, index) in [
            ("d.from_precedent_id", "precedent_reference_from"),
            ("d.to_precedent_id", "precedent_reference_to"),
        ] {
            let around = ListQuery {
                order: order(of, "create_time"),
                among: Some((column, vec!["d4711".into()])),
                besides: Some(precedent_reference::points_at_no_deleted),
                limit: 51,
                snapshot,
                ..ListQuery::default()
            };
            filled.page(of, &around).await.uses(index).looks_at(20.0);
            let (sql, params) = of.values(&around, "d.to_precedent_id", &["d1".into()], 100);
            filled.run(&sql, &params.as_sql()).await.uses(index).looks_at(20.0);
        }
    }
}

async fn of_models_and_telemetry(filled: &Filled) {
    for (listing, column, id, time, index) in [
        (
            &training_example::LISTING,
            "d.training_batch_id",
            "b03",
            "create_time",
            "training_example_batch",
        ),
        (
            &service_health::LISTING,
            "d.service_name",
            "s3",
            "last_heartbeat_time",
            "service_health_heartbeat",
        ),
        (&metrics_snapshot::LISTING, "d.source", "s3", "snapshot_time", "metrics_snapshot_source"),
    ] {
        let parent = Some((column, id.to_owned()));
        let order = order(listing, time, true);
        let of_one = ListQuery { parent, order, limit: 11, ..ListQuery::default() };
        filled.page(listing, &of_one).await.uses(index).looks_at(250.0);
    }
    let time = Field::find(metrics_snapshot::LISTING.fields, "snapshot_time").unwrap();
    let start = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 5000);
    let window =
        Window { field: time, start: Some(start), end: Some(start + Duration::from_secs(100)) };
    let series = Series {
        metric: "a".into(),
        start,
        bucket: Duration::from_secs(10),
        query: ListQuery { window: Some(window), ..ListQuery::default() },
    };
    let (sql, params) = series.sql();
    filled.run(&sql, &params.as_sql()).await.uses("metrics_snapshot_time").looks_at(101.0);
}

/// The oldest unused, whatever the writer's one plan for everybody was made for.
async fn taking_examples(filled: &Filled) {
    let claim = ClaimTrainingBatch {
        framework: "f".into(),
        training_batch_id: "b".into(),
        max_examples: 10,
        filter: Filter::default(),
    };
    let (sql, params) = claim.free();
    let plan = explain_any(filled.conn.client(), &sql, params.as_sql().len()).await.unwrap();
    Plan::read(&plan, &filled.names).uses("training_example_status").unsorted();
    filled.run(&sql, &params.as_sql()).await.uses("training_example_status").looks_at(10.0);
}

async fn totals(filled: &Filled) {
    let client = filled.conn.client();
    let all = newest(Filter::default());
    let (sql, params) = decision::LISTING.count(&all);
    let counted: i64 = client.query_one(&sql, &params.as_sql()).await.unwrap().get(0);
    assert_eq!(counted, MAX_EXACT_COUNT + 1);
    let (sql, params) = decision::LISTING.estimate(&all);
    let rows = client.query(&sql, &params.as_sql()).await.unwrap();
    let estimate = estimated_rows(rows[0].get(0)).unwrap();
    assert!((80_000..120_000).contains(&estimate), "{estimate}");
}

async fn by_id(filled: &Filled) {
    let get = queries().find(|query| query.name() == "decision.GET").unwrap();
    let ids = vec!["d1", "d50", "d4711", "nobody"];
    let plan = filled.run(get.sql(), &[&ids]).await;
    plan.uses("decision_id").looks_at(3.0);
    // d50 is deleted.
    assert_eq!(plan.rows(), 2.0);
}

/// Every noun has these, but an output's id is unique within its decision only, and only decisions are undeleted.
const NOBODY_RUNS: &[&str] = &[
    "critic_output.GET",
    "critic_output.LOCK",
    "critic_output.LIVE",
    "critic_output.HOLD",
    "critic_output.LOCK_DELETED",
    "override.LOCK_DELETED",
    "policy_rule.LOCK_DELETED",
    "analysis.LOCK_DELETED",
    "chunk.LOCK_DELETED",
    "precedent_reference.LOCK_DELETED",
    "tenant.LOCK_DELETED",
    "api_token.LOCK_DELETED",
    "model_checkpoint.LOCK_DELETED",
    "training_example.LOCK_DELETED",
    "service_health.LOCK_DELETED",
    "metrics_snapshot.LOCK_DELETED",
];

/// The statements that read all of a tenant for a few rows.
async fn undriven(filled: &Filled) -> Vec<String> {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for query in queries() {
        // It asks whether the wall holds: without a tenant there is nothing to see.
        if query.name() == "status.POWERS" || NOBODY_RUNS.contains(&query.name()) {
            continue;
        }
        let client = filled.conn.client();
        let params = client.prepare(query.sql()).await.unwrap().params().len();
        let plan = explain_any(client, query.sql(), params).await.unwrap();
        let plan = Plan::read(&plan, &filled.names);
        seen += plan.scans.len();
        if !plan.is_driven() {
            let by: Vec<_> = plan
                .scans
                .iter()
                .map(|scan| format!("{} {}", scan.index, scan.condition))
                .collect();
            wrong.push(format!("{} by {by:?}", query.name()));
        }
    }
    assert!(seen > 30, "{seen}");
    wrong
}

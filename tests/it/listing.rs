//! Listings against a model in memory: random histories, filters and orders, over a partitioned log.

use crate::world::{config_of, connect, drop_database, new_database};
use FieldKind::*;
use casebook::store::filter::{Condition, Field, FieldKind, Filter, Op, Params, Value};
use casebook::store::list::{Cursor, ListQuery, Listing, Order, Window};
use std::cmp::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::{Client, Row};

static FIELDS: &[Field] = &[
    Field::new("id", "d.id", Text),
    Field::new("verdict", "d.verdict", Text),
    Field::new("note", "d.note", Text).nullable(),
    Field::new("score", "d.score", Float).nullable(),
    Field::new("priority", "d.priority", Int),
    Field::new("urgent", "d.urgent", Bool),
    Field::new(
        "state",
        "d.state",
        Enum { prefix: "S_", names: &[("FINAL", 1), ("OVERRIDDEN", 2)] },
    ),
    Field::new("decide_time", "d.decide_time", Time),
    Field::new("expire_time", "d.expire_time", Time).nullable(),
    Field::new("parent", "d.parent_uid", Uuid),
    Field::new("labels", "d.labels", Labels),
    Field::new("metadata", "d.metadata", Json),
];

static LISTING: Listing =
    Listing { kind: "decision", table: "decision", op: "decision.LIST", fields: FIELDS };

const COLUMNS: &[&str] = &[
    "uid",
    "id",
    "version",
    "verdict",
    "note",
    "score",
    "priority",
    "urgent",
    "state",
    "decide_time",
    "expire_time",
    "parent_uid",
    "delete_time",
];

const SCHEMA: &str = r#"
CREATE SCHEMA base;
CREATE SCHEMA app;
CREATE TABLE base.decision (
    tenant_id text NOT NULL, uid uuid NOT NULL, id text COLLATE "C" NOT NULL, version bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(), update_time timestamptz NOT NULL DEFAULT now(),
    delete_time timestamptz,
    verdict text COLLATE "C" NOT NULL, note text, score float8, priority int NOT NULL, urgent bool NOT NULL,
    state smallint NOT NULL, decide_time timestamptz NOT NULL, expire_time timestamptz,
    parent_uid uuid NOT NULL, labels jsonb NOT NULL, metadata jsonb NOT NULL,
    PRIMARY KEY (tenant_id, uid));
CREATE UNIQUE INDEX decision_id ON base.decision (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX decision_decide ON base.decision (tenant_id, decide_time, uid) WHERE delete_time IS NULL;
CREATE INDEX decision_score ON base.decision (tenant_id, score DESC NULLS LAST, uid DESC) WHERE delete_time IS NULL;
CREATE INDEX decision_verdict ON base.decision (tenant_id, verdict) WHERE delete_time IS NULL;
CREATE INDEX decision_metadata ON base.decision USING gin (metadata jsonb_path_ops);
CREATE TABLE base.log (
    tenant_id text NOT NULL, seq bigint NOT NULL, time timestamptz NOT NULL, kind text NOT NULL,
    uid uuid NOT NULL, id text COLLATE "C" NOT NULL, version bigint NOT NULL, action text NOT NULL, document bytea,
    PRIMARY KEY (tenant_id, seq, time)) PARTITION BY RANGE (time);
CREATE TABLE base.log_first PARTITION OF base.log FOR VALUES FROM (MINVALUE) TO ('2026-01-10');
CREATE TABLE base.log_second PARTITION OF base.log FOR VALUES FROM ('2026-01-10') TO ('2026-01-20');
CREATE TABLE base.log_default PARTITION OF base.log DEFAULT;
CREATE INDEX log_of ON base.log (tenant_id, kind, id, seq);
CREATE VIEW app.decision AS SELECT * FROM base.decision
    WHERE tenant_id = NULLIF(current_setting('app.tenant', true), '') WITH CASCADED CHECK OPTION;
CREATE VIEW app.log AS SELECT * FROM base.log
    WHERE tenant_id = NULLIF(current_setting('app.tenant', true), '') WITH CASCADED CHECK OPTION;
"#;

/// A database of tables of our own, and a session that sees them through the views of one tenant.
async fn database() -> (String, Client) {
    let name = new_database(false).await;
    let client = connect(&config_of(&name).await).await;
    client.batch_execute(SCHEMA).await.unwrap();
    client.batch_execute("SET search_path = app").await.unwrap();
    (name, client)
}

async fn tenant(client: &Client, name: &str) {
    client.query("SELECT set_config('app.tenant', $1, false)", &[&name]).await.unwrap();
}

async fn run(client: &Client, (sql, params): &(String, Params)) -> Vec<Row> {
    match client.query(sql, &params.as_sql()).await {
        Ok(rows) => rows,
        Err(error) => panic!("{error:?}\n{sql}\n{params:?}"),
    }
}

fn field(name: &str) -> &'static Field {
    Field::find(FIELDS, name).unwrap()
}

fn is(path: &str, op: Op) -> Filter {
    let mut keys = path.split('.').map(str::to_owned);
    let field = field(&keys.next().unwrap());
    Filter::Field(Condition::new(field, keys.collect(), op).unwrap())
}

fn not(filter: Filter) -> Filter {
    Filter::Not(Box::new(filter))
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn below(bound: Value) -> Op {
    Op::Range { gt: None, gte: None, lt: Some(bound), lte: None }
}

fn above(bound: Value) -> Op {
    Op::Range { gt: Some(bound), gte: None, lt: None, lte: None }
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn uid(&mut self) -> uuid::Uuid {
        let mut half = || u64::from(self.below(1 << 31) as u32) << 32 | self.below(1 << 31) as u64;
        uuid::Uuid::from_u64_pair(half(), half())
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Record {
    uid: uuid::Uuid,
    id: String,
    version: i64,
    deleted: bool,
    verdict: String,
    note: Option<String>,
    score: Option<f64>,
    priority: i32,
    urgent: bool,
    state: i16,
    decide_time: SystemTime,
    expire_time: Option<SystemTime>,
    parent_uid: uuid::Uuid,
    labels: &'static str,
    metadata: &'static str,
}

const LABELS: &[&str] = &["{}", r#"{"k":"v"}"#, r#"{"k":"w"}"#, r#"{"k":""}"#, r#"{"a.b":"v"}"#];
const METADATA: &[&str] = &[
    "{}",
    r#"{"n":1}"#,
    r#"{"n":2.5}"#,
    r#"{"n":"1"}"#,
    r#"{"n":[1]}"#,
    r#"{"n":true}"#,
    r#"{"n":null}"#,
    r#"{"n":{"n":1}}"#,
    r#"[{"n":1}]"#,
    r#""n""#,
];
const PARENTS: [uuid::Uuid; 2] = [uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2)];

fn time(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

impl Record {
    fn random(dice: &mut Dice, id: String) -> Self {
        let texts = ["", "a", "ab", "b", "B", "é", "z\u{10FFFF}", "it's \"q\""];
        let times =
            [-62_135_596_800_000_000, -1, 0, 1, 1_700_000_000_123_456, 253_402_300_799_999_999];
        Self {
            uid: dice.uid(),
            id,
            version: 1,
            deleted: false,
            verdict: dice.pick(&texts).into(),
            note: dice.chance(60).then(|| dice.pick(&texts).into()),
            score: dice.chance(60).then(|| dice.pick(&[0.1, 0.1 + 0.2, 0.5, -1e-300, 1e300])),
            priority: dice.pick(&[-1, 0, 7]),
            urgent: dice.chance(50),
            state: dice.pick(&[1, 2]),
            decide_time: time(dice.pick(&times)),
            expire_time: dice.chance(50).then(|| time(dice.pick(&times))),
            parent_uid: dice.pick(&PARENTS),
            labels: dice.pick(LABELS),
            metadata: dice.pick(METADATA),
        }
    }

    fn cmp_by(&self, other: &Self, order: &[Order]) -> Ordering {
        fn nulls_last<T: PartialOrd>(a: &Option<T>, b: &Option<T>, desc: bool) -> Ordering {
            match (a, b) {
                (None, None) => Ordering::Equal,
                (None, _) => Ordering::Greater,
                (_, None) => Ordering::Less,
                (Some(a), Some(b)) if desc => b.partial_cmp(a).unwrap(),
                (Some(a), Some(b)) => a.partial_cmp(b).unwrap(),
            }
        }
        for Order { field, desc } in order {
            let one = |a: &dyn Fn(&Self) -> f64| nulls_last(&Some(a(self)), &Some(a(other)), *desc);
            let by = match field.name {
                "id" => nulls_last(&Some(&self.id), &Some(&other.id), *desc),
                "verdict" => nulls_last(&Some(&self.verdict), &Some(&other.verdict), *desc),
                "note" => nulls_last(&self.note, &other.note, *desc),
                "score" => nulls_last(&self.score, &other.score, *desc),
                "priority" => one(&|r| f64::from(r.priority)),
                "urgent" => one(&|r| f64::from(r.urgent)),
                "state" => one(&|r| f64::from(r.state)),
                "decide_time" => {
                    nulls_last(&Some(self.decide_time), &Some(other.decide_time), *desc)
                }
                "expire_time" => nulls_last(&self.expire_time, &other.expire_time, *desc),
                "parent" => nulls_last(&Some(self.parent_uid), &Some(other.parent_uid), *desc),
                other => panic!("{other}"),
            };
            if by != Ordering::Equal {
                return by;
            }
        }
        let desc = order.last().is_some_and(|order| order.desc);
        if desc { other.uid.cmp(&self.uid) } else { self.uid.cmp(&other.uid) }
    }

    fn matches_row(&self, row: &Row) -> bool {
        let deleted: Option<SystemTime> = row.get("delete_time");
        row.get::<_, uuid::Uuid>("uid") == self.uid
            && row.get::<_, String>("id") == self.id
            && row.get::<_, i64>("version") == self.version
            && row.get::<_, String>("verdict") == self.verdict
            && row.get::<_, Option<String>>("note") == self.note
            && row.get::<_, Option<f64>>("score") == self.score
            && row.get::<_, i32>("priority") == self.priority
            && row.get::<_, bool>("urgent") == self.urgent
            && row.get::<_, i16>("state") == self.state
            && row.get::<_, SystemTime>("decide_time") == self.decide_time
            && row.get::<_, Option<SystemTime>>("expire_time") == self.expire_time
            && row.get::<_, uuid::Uuid>("parent_uid") == self.parent_uid
            && deleted.is_some() == self.deleted
    }
}

/// One tenant's rows and log, here and in the database.
struct Model<'a> {
    client: &'a Client,
    seq: i64,
    rows: Vec<Record>,
}

impl Model<'_> {
    async fn write(&mut self, record: &Record, purge: bool) {
        self.seq += 1;
        let tenant = "NULLIF(current_setting('app.tenant', true), '')";
        if purge {
            let sql = "DELETE FROM decision WHERE uid = $1";
            self.client.execute(sql, &[&record.uid]).await.unwrap();
            let sql = format!(
                "INSERT INTO log (tenant_id, seq, time, kind, uid, id, version, action)
                 VALUES ({tenant}, $1, '2026-01-01'::timestamptz + $1::bigint * interval '1 day', 'decision', $2, $3, $4, 'PURGE')"
            );
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                [&self.seq, &record.uid, &record.id, &(record.version + 1)];
            self.client.execute(&sql, &params).await.unwrap();
            return;
        }
        let sql = "DELETE FROM decision WHERE uid = $1";
        self.client.execute(sql, &[&record.uid]).await.unwrap();
        let r = record;
        let sql = format!(
            "WITH d AS (INSERT INTO decision (tenant_id, uid, id, version, delete_time, verdict, note, score,
               priority, urgent, state, decide_time, expire_time, parent_uid, labels, metadata)
             VALUES ({tenant}, $1, $2, $3, CASE WHEN $4 THEN now() END, $5, $6, $7, $8, $9, $10, $11,
               $12, $13, $14::text::jsonb, $15::text::jsonb) RETURNING *)
             INSERT INTO log (tenant_id, seq, time, kind, uid, id, version, action, document)
             SELECT tenant_id, $16, '2026-01-01'::timestamptz + $16::bigint * interval '1 day', 'decision', uid, id, version, 'WRITE',
               convert_to((to_jsonb(d) - 'tenant_id')::text, 'UTF8') FROM d"
        );
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 16] = [
            &r.uid,
            &r.id,
            &r.version,
            &r.deleted,
            &r.verdict,
            &r.note,
            &r.score,
            &r.priority,
            &r.urgent,
            &r.state,
            &r.decide_time,
            &r.expire_time,
            &r.parent_uid,
            &r.labels,
            &r.metadata,
            &self.seq,
        ];
        self.client.execute(&sql, &params).await.unwrap();
    }

    /// Creates, changes, deletes, undeletes, recreates or purges something.
    async fn change(&mut self, dice: &mut Dice) {
        let id = format!("{}{}", dice.pick(&["d", "D", "é"]), dice.below(6));
        let live = self.rows.iter().position(|row| row.id == id && !row.deleted);
        let dead = self.rows.iter().position(|row| row.id == id && row.deleted);
        match (live, dead) {
            (Some(i), _) => {
                let mut row = self.rows[i].clone();
                row.version += 1;
                if dice.chance(35) {
                    row.deleted = true;
                } else {
                    let other = Record::random(dice, id);
                    row = Record { uid: row.uid, version: row.version, ..other };
                }
                self.write(&row, false).await;
                self.rows[i] = row;
            }
            (None, Some(i)) if dice.chance(60) => {
                let mut row = self.rows[i].clone();
                if dice.chance(50) {
                    self.write(&row, true).await;
                    self.rows.remove(i);
                } else {
                    row.version += 1;
                    row.deleted = false;
                    self.write(&row, false).await;
                    self.rows[i] = row;
                }
            }
            _ => {
                let row = Record::random(dice, id);
                self.write(&row, false).await;
                self.rows.push(row);
            }
        }
    }
}

type Matches = fn(&Record) -> bool;

/// Filters, and what they mean.
fn filters() -> Vec<(Filter, Matches)> {
    let int = Value::Int;
    vec![
        (Filter::default(), |_| true),
        (Filter::Any(vec![]), |_| false),
        (is("score", below(Value::Float(0.3))), |r| r.score.is_some_and(|s| s < 0.3)),
        (not(is("score", above(Value::Float(0.3)))), |r| r.score.is_none_or(|s| s <= 0.3)),
        (is("score", Op::NotEquals(Value::Float(0.1))), |r| r.score != Some(0.1)),
        (is("score", Op::Exists(false)), |r| r.score.is_none()),
        (is("note", Op::Equals(text("it's \"q\""))), |r| r.note.as_deref() == Some("it's \"q\"")),
        (is("note", Op::Exists(true)), |r| r.note.as_ref().is_some_and(|n| !n.is_empty())),
        (is("note", Op::Exists(false)), |r| r.note.as_ref().is_none_or(String::is_empty)),
        (is("note", Op::NotIn(vec![text("a"), text("b")])), |r| {
            !matches!(r.note.as_deref(), Some("a" | "b"))
        }),
        (is("verdict", Op::Prefix("a".into())), |r| r.verdict.starts_with('a')),
        (is("verdict", Op::Prefix("z\u{10FFFF}".into())), |r| r.verdict.starts_with("z\u{10FFFF}")),
        (is("verdict", below(text("b"))), |r| !r.verdict.is_empty() && r.verdict.as_str() < "b"),
        (is("priority", Op::In(vec![int(-1), int(7)])), |r| r.priority != 0),
        (is("urgent", Op::Equals(Value::Bool(true))), |r| r.urgent),
        (is("state", Op::Equals(text("S_OVERRIDDEN"))), |r| r.state == 2),
        (is("decide_time", above(Value::Time(UNIX_EPOCH))), |r| r.decide_time > UNIX_EPOCH),
        (is("expire_time", Op::NotEquals(Value::Time(UNIX_EPOCH))), |r| {
            r.expire_time != Some(UNIX_EPOCH)
        }),
        (is("labels.k", Op::Equals(text("v"))), |r| r.labels == r#"{"k":"v"}"#),
        (is("labels.k", Op::NotEquals(text("v"))), |r| r.labels != r#"{"k":"v"}"#),
        (is("labels.k", Op::Exists(false)), |r| !r.labels.contains("\"k\"")),
        (is("labels.k", above(text("v"))), |r| r.labels == r#"{"k":"w"}"#),
        (is("labels.k", Op::Prefix("".into())), |r| r.labels.contains("\"k\"")),
        (is("metadata.n", Op::Equals(int(1))), |r| r.metadata == r#"{"n":1}"#),
        (is("metadata.n", Op::Equals(Value::Float(1.0))), |r| r.metadata == r#"{"n":1}"#),
        (is("metadata.n", Op::Equals(text("1"))), |r| r.metadata == r#"{"n":"1"}"#),
        (is("metadata.n", Op::NotEquals(int(1))), |r| r.metadata != r#"{"n":1}"#),
        (is("metadata.n.n", Op::Equals(int(1))), |r| r.metadata == r#"{"n":{"n":1}}"#),
        (is("metadata.n", above(int(1))), |r| r.metadata == r#"{"n":2.5}"#),
        (not(is("metadata.n", above(int(1)))), |r| r.metadata != r#"{"n":2.5}"#),
        (is("metadata.n", below(text("2"))), |r| r.metadata == r#"{"n":"1"}"#),
        (is("metadata.n", Op::In(vec![int(1), text("1"), Value::Bool(true)])), |r| {
            [r#"{"n":1}"#, r#"{"n":"1"}"#, r#"{"n":true}"#].contains(&r.metadata)
        }),
        (is("metadata.n", Op::NotIn(vec![int(1)])), |r| r.metadata != r#"{"n":1}"#),
        (is("metadata.n", Op::Prefix("1".into())), |r| r.metadata == r#"{"n":"1"}"#),
        (is("metadata.n", Op::Exists(true)), |r| r.metadata.starts_with(r#"{"n":"#)),
        (is("metadata.n.n", Op::Exists(false)), |r| r.metadata != r#"{"n":{"n":1}}"#),
        (
            Filter::Any(vec![
                is("metadata.n", Op::Exists(false)),
                Filter::All(vec![
                    is("urgent", Op::Equals(Value::Bool(false))),
                    is("state", Op::Equals(text("FINAL"))),
                ]),
            ]),
            |r| !r.metadata.starts_with(r#"{"n":"#) || !r.urgent && r.state == 1,
        ),
    ]
}

fn random_order(dice: &mut Dice) -> Vec<Order> {
    let sortable: Vec<_> = FIELDS.iter().filter(|field| field.sortable).collect();
    let keys = 0..dice.pick(&[0, 1, 1, 2, 3]);
    let mut order: Vec<Order> = Vec::new();
    for _ in keys {
        let field = dice.pick(&sortable);
        if !order.iter().any(|order| order.field == field) {
            order.push(Order { field, desc: dice.chance(50) });
        }
    }
    order
}

#[tokio::test]
async fn pages_are_the_snapshot_whatever_is_written_meanwhile() {
    let (name, client) = database().await;
    let filters = filters();
    for seed in 1..=250 {
        let mut dice = Dice(seed * 0x9E37_79B9);
        let noise = format!("n{seed}");
        tenant(&client, &noise).await;
        let mut other = Model { client: &client, seq: 0, rows: vec![] };
        for _ in 0..6 {
            other.change(&mut dice).await;
        }
        tenant(&client, &format!("t{seed}")).await;
        let mut model = Model { client: &client, seq: 0, rows: vec![] };
        for _ in 0..dice.below(40) {
            model.change(&mut dice).await;
        }

        let (filter, matches) = dice.pick(&filters);
        let mut query = ListQuery {
            filter,
            order: random_order(&mut dice),
            limit: 1 + dice.below(5) as i64,
            skip: dice.below(3) as i64,
            show_deleted: dice.chance(30),
            parent: dice.chance(20).then_some(("d.parent_uid::text", PARENTS[0].to_string())),
            window: dice.chance(20).then_some(Window {
                field: field("decide_time"),
                start: Some(UNIX_EPOCH),
                end: Some(UNIX_EPOCH + Duration::from_micros(1)),
            }),
            snapshot: dice.chance(50).then_some(model.seq),
            ..Default::default()
        };
        let mut want: Vec<_> = model.rows.iter().filter(|row| matches(row)).cloned().collect();
        want.retain(|row| query.show_deleted || !row.deleted);
        want.retain(|row| query.parent.is_none() || row.parent_uid == PARENTS[0]);
        want.retain(|row| query.window.is_none() || row.decide_time == UNIX_EPOCH);
        want.sort_by(|a, b| a.cmp_by(b, &query.order));

        let (total, seq) = (want.len() as i64, model.seq);
        let mut want = want.into_iter().skip(query.skip as usize);
        loop {
            let page = LISTING.page(COLUMNS, &query);
            let rows = run(&client, &page).await;
            for row in &rows {
                let want = want.next();
                assert!(
                    want.as_ref().is_some_and(|want| want.matches_row(row)),
                    "seed {seed}: {row:?} is not {want:?}\n{query:?}\n{}",
                    page.0
                );
            }
            let counted: i64 = run(&client, &LISTING.count(&query)).await[0].get(0);
            assert_eq!(counted, total, "seed {seed}");
            if (rows.len() as i64) < query.limit {
                break;
            }
            let key: Vec<Option<String>> = rows.last().unwrap().get("cursor_key");
            query.after = Some(Cursor::parse(&query.order, &key).unwrap());
            query.snapshot = Some(seq);
            query.skip = 0;
            for _ in 0..dice.below(12) {
                model.change(&mut dice).await;
            }
        }
        assert_eq!(want.next(), None, "seed {seed}: {query:?}");
    }
    drop(client);
    drop_database(&name).await;
}

#[tokio::test]
async fn every_filter_means_what_it_says() {
    let (name, client) = database().await;
    tenant(&client, "t").await;
    let mut dice = Dice(7);
    let mut model = Model { client: &client, seq: 0, rows: vec![] };
    for _ in 0..150 {
        let row = Record::random(&mut dice, format!("d{}", model.rows.len()));
        model.write(&row, false).await;
        model.rows.push(row);
    }
    for scan in ["SET enable_seqscan = on", "SET enable_seqscan = off"] {
        client.batch_execute(scan).await.unwrap();
        for (filter, matches) in filters() {
            let query = ListQuery { filter, limit: 1000, ..Default::default() };
            let rows = run(&client, &LISTING.page(COLUMNS, &query)).await;
            let mut got: Vec<uuid::Uuid> = rows.iter().map(|row| row.get("uid")).collect();
            let mut want: Vec<_> =
                model.rows.iter().filter(|row| matches(row)).map(|row| row.uid).collect();
            got.sort();
            want.sort();
            assert_eq!(got, want, "{query:?}");
        }
    }
    // Values that could break out of their quotes, or a limit of PostgreSQL.
    let odd: String = (1..=0x2FF).filter_map(char::from_u32).collect();
    for key in ["\"", "\\", "$", "' OR 1=1", "\n\u{1}\u{7f}", "\u{2028}😀", "a b", &odd[..899]] {
        for op in [
            Op::Equals(text(key)),
            Op::In(vec![text(key); 1000]),
            Op::Prefix(key.into()),
            above(text(key)),
            Op::Exists(true),
            Op::In(vec![Value::Float(f64::MAX), Value::Float(-5e-324)]),
            above(Value::Int(i64::MIN)),
        ] {
            let condition = Condition::new(field("metadata"), vec![key.to_owned(); 8], op);
            let filter = Filter::Field(condition.unwrap());
            let query = ListQuery { filter, limit: 1, ..Default::default() };
            run(&client, &LISTING.page(COLUMNS, &query)).await;
        }
    }
    drop(client);
    drop_database(&name).await;
}

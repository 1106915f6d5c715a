//! Every statement of the service against the migrated schema, through the service's own session.

use crate::world::{config_of, connect, drop_database, new_database, url_of};
use casebook::config::Config;
use casebook::server::store_settings;
use casebook::store::filter::{Condition, Field, FieldKind, Filter, Op, Value};
use casebook::store::list::{Cursor, ListQuery, Listing, Order, Window};
use casebook::store::postgres::{Conn, Lane};
use casebook::store::query::Check;
use casebook::store::{Store, listings, queries};
use casebook::telemetry::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio_postgres::Client;
use uuid::Uuid;

/// A store on a database, as a server with the default settings would make it.
pub async fn store_on(database: &str) -> Store {
    let url = url_of(&config_of(database).await);
    let flags = vec![("database_url".to_owned(), url)];
    let config = Config::load(None, Vec::new(), flags).unwrap_or_else(|error| panic!("{error}"));
    let connect = config_of(database).await;
    Store::new(store_settings(&config, connect), Arc::new(Metrics::new([], []))).unwrap()
}

/// The columns that a listing's rows are read with: those of the noun's own statement.
pub fn columns_of(listing: &Listing) -> Vec<&'static str> {
    let name = match listing.kind {
        "log" => "log.BY_SEQ".to_owned(),
        kind => format!("{kind}.GET"),
    };
    let query = queries().find(|query| query.name() == name).expect("a statement of its rows");
    query.columns().iter().map(|column| column.name).collect()
}

/// One column behind the wall.
#[derive(Clone, Debug)]
struct Behind {
    name: String,
    not_null: bool,
    generated: bool,
    sql_type: String,
    /// Text that is compared by bytes.
    by_bytes: bool,
}

/// What is behind each view of the wall: the table's name, and its columns by their number in the view.
async fn wall(superuser: &Client) -> BTreeMap<u32, (String, BTreeMap<i16, Behind>)> {
    let sql = r#"SELECT v.oid, v.relname::text, a.attnum, b.attname::text, b.attnotnull,
          b.attgenerated <> '' AS generated,
          format_type(b.atttypid, NULL) AS sql_type, b.attcollation = 'pg_catalog."C"'::regcollation AS by_bytes
        FROM pg_class v JOIN pg_namespace vn ON vn.oid = v.relnamespace AND vn.nspname = 'wall' AND v.relkind = 'v'
        JOIN pg_attribute a ON a.attrelid = v.oid AND a.attnum > 0
        JOIN pg_class t ON t.relname = v.relname
        JOIN pg_namespace tn ON tn.oid = t.relnamespace AND tn.nspname = 'casebook'
        JOIN pg_attribute b ON b.attrelid = t.oid AND b.attname = a.attname"#;
    let mut wall: BTreeMap<u32, (String, BTreeMap<i16, Behind>)> = BTreeMap::new();
    for row in superuser.query(sql, &[]).await.unwrap() {
        let behind = Behind {
            name: row.get("attname"),
            not_null: row.get("attnotnull"),
            generated: row.get("generated"),
            sql_type: row.get("sql_type"),
            by_bytes: row.get("by_bytes"),
        };
        let view = wall.entry(row.get("oid")).or_insert((row.get("relname"), BTreeMap::new()));
        view.1.insert(row.get("attnum"), behind);
    }
    wall
}

fn message(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or(error.to_string(), ToString::to_string)
}

/// The plan of a prepared statement for whatever values, as the session's plan_cache_mode makes it.
pub async fn explain_any(
    client: &Client,
    sql: &str,
    params: usize,
) -> Result<serde_json::Value, tokio_postgres::Error> {
    let values = vec!["NULL"; params].join(", ");
    let values = if params == 0 { String::new() } else { format!("({values})") };
    client.batch_execute(&format!("PREPARE explained AS {sql}")).await?;
    let plan =
        client.simple_query(&format!("EXPLAIN (FORMAT JSON) EXECUTE explained{values}")).await;
    client.batch_execute("DEALLOCATE explained").await?;
    let plan = plan?;
    let row = plan.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(serde_json::from_str(row.expect("a plan")).expect("a plan in JSON"))
}

/// All that is wrong between the statements and the schema, one line each.
async fn faults(conn: &Conn, superuser: &Client) -> Vec<String> {
    let wall = wall(superuser).await;
    let mut faults = Vec::new();
    for query in queries() {
        let name = query.name();
        let statement = match conn.client().prepare(query.sql()).await {
            Ok(statement) => statement,
            Err(error) => {
                faults.push(format!("{name}: {}", message(&error)));
                continue;
            }
        };
        faults.extend(query.check(&statement).iter().map(|wrong| format!("{name}: {wrong}")));
        // Preparing does not look at rights; starting the executor, as EXPLAIN does, looks.
        if let Err(error) = explain_any(conn.client(), query.sql(), statement.params().len()).await
        {
            faults.push(format!("{name}: {}", message(&error)));
        }
        for (got, column) in statement.columns().iter().zip(query.columns()) {
            let place = got.table_oid().zip(got.column_id());
            let behind = place.and_then(|(view, n)| wall.get(&view)?.1.get(&n));
            if let Some(Behind { not_null, .. }) = behind
                && *not_null == column.nullable
            {
                let (in_sql, in_rust) = match not_null {
                    true => ("NOT NULL", "an Option"),
                    false => ("nullable", "not an Option"),
                };
                faults.push(format!("{name}: {} is {in_sql} but {in_rust}", column.name));
            }
        }
    }
    // A noun's row is the whole row, or saving it, or its document, would lose a column.
    for (view, columns) in wall.values() {
        let whole = queries().find(|query| query.name() == format!("{view}.GET"));
        if let Some(whole) = whole {
            let have: Vec<&str> = columns.values().map(|column| column.name.as_str()).collect();
            let want: Vec<&str> = whole.columns().iter().map(|column| column.name).collect();
            // Behind the row stands what the database fills in: words to search, and what references resolved to.
            let filled = |column: &&Behind| {
                column.generated || !column.not_null && column.sql_type == "uuid"
            };
            let behind = columns.values().skip(1 + want.len());
            if have.first() != Some(&"tenant_id")
                || !have[1..].starts_with(&want)
                || !behind.into_iter().all(|column| filled(&column))
            {
                faults.push(format!("{view}: the columns are {have:?} and the fields {want:?}"));
            }
        }
    }
    for listing in listings() {
        let Some((_, columns)) = wall.values().find(|(view, _)| view == listing.table) else {
            faults.push(format!("{}: there is no view {}", listing.op, listing.table));
            continue;
        };
        for field in listing.fields {
            let behind =
                columns.values().find(|behind| field.column == format!("d.{}", behind.name));
            match behind {
                None => faults.push(format!("{}: there is no {}", listing.op, field.column)),
                Some(behind) => faults.extend(disagreement(listing, field, behind)),
            }
        }
    }
    faults
}

fn disagreement(listing: &Listing, field: &Field, behind: &Behind) -> Option<String> {
    let types: &[&str] = match field.kind {
        FieldKind::Text => &["text"],
        FieldKind::Int => &["smallint", "integer", "bigint"],
        FieldKind::Float => &["double precision"],
        FieldKind::Bool => &["boolean"],
        FieldKind::Time => &["timestamp with time zone"],
        FieldKind::Enum { .. } => &["smallint"],
        FieldKind::Uuid => &["uuid"],
        FieldKind::Texts | FieldKind::Labels | FieldKind::Json => &["jsonb"],
    };
    let at = format!("{}: {}", listing.op, field.name);
    if !types.contains(&behind.sql_type.as_str()) {
        return Some(format!("{at} is {:?} and the column {}", field.kind, behind.sql_type));
    }
    if field.nullable == behind.not_null {
        return Some(format!("{at} is nullable: {}, and the column is not so", field.nullable));
    }
    // Otherwise no index on the column serves the order that a listing asks for.
    if field.kind == FieldKind::Text && !behind.by_bytes {
        return Some(format!("{at} is ordered by bytes and the column is not COLLATE \"C\""));
    }
    None
}

#[tokio::test]
async fn every_statement_fits_the_schema() {
    let database = new_database(true).await;
    let store = store_on(&database).await;
    let superuser = connect(&config_of(&database).await).await;
    for lane in [Lane::Admin, Lane::Write] {
        let conn = store.connection(lane).await.unwrap();
        let row = conn.client().query_one("SELECT current_user::text", &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "casebook_app");
        let faults = faults(&conn, &superuser).await;
        assert!(faults.is_empty(), "{faults:#?}");
        conn.done();
    }
    assert!(queries().count() > 40, "{}", queries().count());
    store.close();
    drop(superuser);
    drop_database(&database).await;
}

#[test]
fn names_tell_statements_apart() {
    let mut seen = BTreeSet::new();
    for name in queries().map(Check::name).chain(listings().map(|listing| listing.op)) {
        assert!(seen.insert(name), "{name} twice");
    }
    for query in queries() {
        assert!(query.sql().starts_with(&format!("-- {}\n", query.name())), "{}", query.sql());
        assert!(!query.sql().contains('{'), "a place that nothing was put in: {}", query.sql());
    }
}

#[tokio::test]
async fn a_schema_that_drifted_is_noticed() {
    let drifts = [
        (
            "ALTER TABLE casebook.decision ALTER COLUMN model_version DROP NOT NULL",
            "decision.GET: model_version is nullable but not an Option",
        ),
        (
            "ALTER TABLE casebook.decision ALTER COLUMN ambiguity SET NOT NULL",
            "decision.GET: ambiguity is NOT NULL but an Option",
        ),
        (
            "ALTER TABLE casebook.decision ALTER COLUMN ambiguity SET NOT NULL",
            "decision.LIST: ambiguity is nullable: true, and the column is not so",
        ),
        (
            "ALTER VIEW wall.override RENAME COLUMN urgent TO pressing",
            "override.GET: ERROR: column \"urgent\" does not exist",
        ),
        (
            "DROP VIEW wall.critic_output; ALTER TABLE casebook.critic_output ALTER COLUMN weight TYPE real;
             CALL casebook.build_wall('casebook.critic_output')",
            "critic_output.GET: weight is float4",
        ),
        (
            "ALTER TABLE casebook.policy_rule ADD COLUMN owner text; CALL casebook.build_wall('casebook.policy_rule')",
            "policy_rule: the columns are",
        ),
        (
            "DROP VIEW wall.policy_rule;
             ALTER TABLE casebook.policy_rule ALTER COLUMN name TYPE text COLLATE \"default\";
             CALL casebook.build_wall('casebook.policy_rule')",
            "policy_rule.LIST: name is ordered by bytes and the column is not COLLATE \"C\"",
        ),
        (
            "DROP FUNCTION wall.credential(uuid)",
            "api_token_secret.CREDENTIAL: ERROR: function wall.credential(unknown) does not exist",
        ),
        (
            "REVOKE UPDATE ON wall.decision FROM casebook_app",
            "decision.SAVE: ERROR: permission denied for view decision",
        ),
    ];
    let database = new_database(true).await;
    let store = store_on(&database).await;
    let superuser = connect(&config_of(&database).await).await;
    for (drift, wanted) in drifts {
        superuser.batch_execute("BEGIN").await.unwrap();
        superuser.batch_execute(drift).await.unwrap();
        superuser.batch_execute("COMMIT").await.unwrap();
        let conn = store.connection(Lane::Admin).await.unwrap();
        let faults = faults(&conn, &superuser).await;
        assert!(
            faults.iter().any(|fault| fault.contains(wanted)),
            "{drift}\n{wanted}\n{faults:#?}"
        );
    }
    store.close();
    drop(superuser);
    drop_database(&database).await;
}

/// Values that fit a field, two different ones where there are two.
fn values(kind: FieldKind) -> Vec<Value> {
    match kind {
        FieldKind::Text | FieldKind::Texts | FieldKind::Labels => {
            vec![Value::Text("a".into()), Value::Text("b".into())]
        }
        FieldKind::Json => vec![Value::Int(1), Value::Float(0.5)],
        FieldKind::Int => vec![Value::Int(1), Value::Float(2.0)],
        FieldKind::Float => vec![Value::Float(0.5), Value::Int(1)],
        FieldKind::Bool => vec![Value::Bool(true), Value::Bool(false)],
        FieldKind::Time => {
            vec![Value::Time(UNIX_EPOCH), Value::Time(UNIX_EPOCH + Duration::from_secs(1))]
        }
        FieldKind::Enum { prefix, names } => names
            .iter()
            .flat_map(|(name, _)| [(*name).to_owned(), format!("{prefix}{name}")])
            .map(Value::Text)
            .collect(),
        FieldKind::Uuid => vec![Value::Text(Uuid::nil().to_string())],
    }
}

/// Every operation that a field takes. What it must not take is checked to be refused.
fn conditions(field: &'static Field) -> Vec<Filter> {
    let values = values(field.kind);
    let (one, other) = (values[0].clone(), values[values.len() - 1].clone());
    let some = |value: &Value| Some(value.clone());
    let ops = vec![
        Op::Equals(one.clone()),
        Op::NotEquals(other.clone()),
        Op::In(values.clone()),
        Op::In(Vec::new()),
        Op::NotIn(values),
        Op::NotIn(Vec::new()),
        Op::Exists(true),
        Op::Exists(false),
        Op::Range { gt: some(&one), gte: None, lt: some(&other), lte: None },
        Op::Range { gt: None, gte: some(&one), lt: None, lte: some(&other) },
        Op::Range { gt: None, gte: None, lt: None, lte: some(&other) },
        Op::Prefix("a".into()),
        Op::ContainsAny(vec![one.clone(), other.clone()]),
        Op::ContainsAny(Vec::new()),
        Op::ContainsAll(vec![one, other]),
        Op::ContainsAll(Vec::new()),
    ];
    let path: Vec<String> = match field.kind {
        FieldKind::Labels => vec!["k".into()],
        FieldKind::Json => vec!["a".into(), "b".into()],
        _ => Vec::new(),
    };
    let mut taken = Vec::new();
    for op in ops {
        let refused = match op {
            Op::Exists(_) => false,
            Op::ContainsAny(_) | Op::ContainsAll(_) => field.kind != FieldKind::Texts,
            _ if field.kind == FieldKind::Texts => true,
            Op::Range { .. } => {
                matches!(field.kind, FieldKind::Bool | FieldKind::Enum { .. } | FieldKind::Uuid)
            }
            Op::Prefix(_) => {
                !matches!(field.kind, FieldKind::Text | FieldKind::Labels | FieldKind::Json)
            }
            _ => false,
        };
        let shown = format!("{} {op:?}", field.name);
        match Condition::new(field, path.clone(), op) {
            Ok(condition) => {
                assert!(!refused, "{shown}");
                let condition = Filter::Field(condition);
                taken.push(Filter::Not(Box::new(condition.clone())));
                taken.push(condition);
            }
            Err(error) => assert!(refused, "{shown}: {error}"),
        }
    }
    taken
}

/// A sort key of a field, as a page token carries it.
fn key(field: &Field) -> &'static str {
    match field.kind {
        FieldKind::Text => "a",
        FieldKind::Float => "0.5",
        FieldKind::Bool => "true",
        FieldKind::Uuid => "00000000-0000-0000-0000-000000000001",
        _ => "1",
    }
}

/// Every order by one field, and by two, on the first page and on later ones.
fn orders(listing: &'static Listing) -> Vec<ListQuery> {
    let uid = Some(Uuid::nil().to_string());
    let sortable = || listing.fields.iter().filter(|field| field.sortable);
    let mut orders = vec![ListQuery::default()];
    for (first, second) in sortable().zip(sortable().skip(1).chain(sortable().take(1))) {
        for desc in [false, true] {
            let mut order = vec![Order { field: first, desc }];
            let text = |field: &Field| Some(key(field).to_owned());
            let mut cursors = vec![vec![text(first), uid.clone()]];
            if first.nullable {
                cursors.push(vec![None, uid.clone()]);
            }
            orders.push(ListQuery { order: order.clone(), ..ListQuery::default() });
            for cursor in cursors {
                let after = Some(Cursor::parse(&order, &cursor).expect("a cursor"));
                orders.push(ListQuery { order: order.clone(), after, ..ListQuery::default() });
            }
            order.push(Order { field: second, desc: !desc });
            let after = Cursor::parse(&order, &[text(first), text(second), uid.clone()]);
            assert!(after.is_some());
            orders.push(ListQuery { order, after, ..ListQuery::default() });
        }
    }
    orders
}

#[tokio::test]
async fn every_listing_fits_the_schema() {
    let database = new_database(true).await;
    let store = store_on(&database).await;
    let conn = store.connection(Lane::Work).await.unwrap();
    let mut count = 0;
    for listing in listings() {
        let is_log = listing.kind == "log";
        let columns = columns_of(listing);
        let mut queries = orders(listing);
        let filters = listing.fields.iter().flat_map(conditions);
        queries.extend(filters.map(|filter| ListQuery { filter, ..ListQuery::default() }));
        queries.extend(listing.fields.iter().filter(|f| f.kind == FieldKind::Time).map(|field| {
            let window = Window {
                field,
                start: Some(UNIX_EPOCH),
                end: Some(UNIX_EPOCH + Duration::from_secs(1)),
            };
            ListQuery { window: Some(window), ..ListQuery::default() }
        }));
        for query in queries {
            // The log has no log of its own: it is listed as it is.
            for snapshot in if is_log { vec![None] } else { vec![None, Some(1)] } {
                let query = ListQuery {
                    show_deleted: is_log,
                    limit: 3,
                    skip: i64::from(snapshot.is_some()),
                    snapshot,
                    ..query.clone()
                };
                // Run rather than prepared: that binds the values, too.
                for (sql, params) in [
                    listing.page(&columns, &query),
                    listing.count(&query),
                    listing.estimate(&query),
                ] {
                    count += 1;
                    if let Err(error) = conn.client().query(&sql, &params.as_sql()).await {
                        panic!("{}: {error:?}\n{sql}\n{query:?}", listing.op);
                    }
                }
            }
        }
    }
    assert!(count > 1000, "{count}");
    conn.done();
    store.close();
    drop_database(&database).await;
}

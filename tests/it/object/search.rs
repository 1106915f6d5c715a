//! Full text search: weights, boolean text, prefixes, filters, and text that means nothing.

use super::*;

fn query(text: &str) -> pb::SearchObjectsRequest {
    pb::SearchObjectsRequest { query: text.into(), ..Default::default() }
}

async fn found(who: &As, request: pb::SearchObjectsRequest) -> Vec<String> {
    let hits = ok!(who.objects().search_objects(request)).hits;
    assert!(hits.is_sorted_by(|a, b| a.rank >= b.rank));
    hits.into_iter().map(|hit| hit.object.unwrap().key).collect()
}

async fn sorted(who: &As, text: &str) -> Vec<String> {
    let mut keys = found(who, query(text)).await;
    keys.sort();
    keys
}

async fn store(who: &As, key: &str, content_type: &str, metadata: &[(&str, &str)]) {
    let mut given = put(key, b"one");
    given.content_type = content_type.into();
    given.metadata = Some(json(metadata));
    made(who, given).await;
}

#[tokio::test]
async fn words_weigh_by_where_they_stand() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    store(&me, "x/in-metadata", "text/plain", &[("title", "heron")]).await;
    store(&me, "x/in-type", "image/heron", &[]).await;
    store(&me, "x/heron", "text/plain", &[]).await;
    store(&me, "x/nowhere", "text/plain", &[]).await;
    assert_eq!(found(&me, query("heron")).await, ["x/heron", "x/in-type", "x/in-metadata"]);
    let hits = ok!(me.objects().search_objects(query("heron"))).hits;
    // As ts_rank weighs A, B and C: 1, 0.4 and 0.2.
    let ranks: Vec<f64> = hits.iter().map(|hit| hit.rank).collect();
    assert!(
        (ranks[0] / ranks[1] - 2.5).abs() < 1e-3 && (ranks[1] / ranks[2] - 2.0).abs() < 1e-3,
        "{ranks:?}"
    );
    let two = pb::SearchObjectsRequest { limit: 2, ..query("heron") };
    assert_eq!(found(&me, two).await.len(), 2);
    let masked = pb::SearchObjectsRequest { read_mask: mask(&["key"]), ..query("heron") };
    let masked = ok!(me.objects().search_objects(masked)).hits;
    assert_eq!(masked[0].object.as_ref().unwrap().version_id, "");
    // What is deleted is not found, and what is new is found at once.
    ok!(me.objects().delete_object(delete("x/heron")));
    assert_eq!(found(&me, query("heron")).await, ["x/in-type", "x/in-metadata"]);
    store(&me, "x/in-type", "image/crane", &[]).await;
    assert_eq!(found(&me, query("heron")).await, ["x/in-metadata"]);
    world.close().await;
}

#[tokio::test]
async fn boolean_text_means_what_it_says() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    store(&me, "finance/invoice_2024-17.pdf", "application/pdf", &[("owner", "ada")]).await;
    store(&me, "finance/report.pdf", "application/pdf", &[("owner", "eve")]).await;
    store(&me, "legal/invoice draft", "text/plain", &[("doc_type", "letter")]).await;
    let (both, report, draft) =
        ("finance/invoice_2024-17.pdf", "finance/report.pdf", "legal/invoice draft");
    for (text, expected) in [
        ("invoice & finance", &[both][..]),
        ("invoice finance", &[both]),
        ("Invoices AND finance", &[both]),
        ("invoice | finance", &[both, report, draft]),
        ("invoice or report", &[both, report, draft]),
        ("invoice & !draft", &[both]),
        ("invoice -draft", &[both]),
        ("(report | draft) & !finance", &[draft]),
        ("finance & !(invoice | report)", &[]),
        ("\"invoice draft\"", &[draft]),
        ("\"draft invoice\"", &[]),
        ("inv*", &[both, draft]),
        ("inv:*", &[both, draft]),
        ("repo:* | let:*", &[report, draft]),
        ("finance/inv*", &[both]),
        ("20*", &[both]),
        ("application/pdf & ada", &[both]),
        ("invoice_2024", &[both]),
        ("pdf -eve", &[both]),
        // Nothing that narrows finds nothing.
        ("", &[]),
        ("!invoice", &[]),
        ("-invoice", &[]),
        ("the of and", &[]),
        ("*", &[]),
        (":*", &[]),
        ("& | ! ( ) \" '", &[]),
    ] {
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(sorted(&me, text).await, expected, "{text:?}");
    }
    let of = |text: &str, r#where: &str| pb::SearchObjectsRequest {
        r#where: expression(r#where),
        ..query(text)
    };
    assert_eq!(found(&me, of("pdf", "metadata.owner = \"eve\"")).await, [report]);
    assert_eq!(found(&me, of("invoice", "content_type = \"text/plain\"")).await, [draft]);
    assert!(found(&me, of("invoice", "storage_backend = \"tape\"")).await.is_empty());
    world.close().await;
}

#[tokio::test]
async fn no_text_is_an_error() {
    let world = World::new().await;
    let me = world.anonymous();
    upload(&me, b"one").await;
    store(&me, "heron", "", &[]).await;
    for text in [
        "heron & & &".to_owned(),
        "((((heron".into(),
        "heron))))".into(),
        "!!!!!heron | heron".into(),
        "'heron' | ':*'".into(),
        "heron <-> heron | heron <2> x".into(),
        "\\ heron | \\".into(),
        "heron:AB* | heron:*".into(),
        format!("heron | {}", "x".repeat(3000)),
        format!("heron | {}*", "x".repeat(3000)),
        format!("{}heron{}", "(".repeat(1000), ")".repeat(1000)),
        format!("{} heron", "!".repeat(2000)),
        format!("heron | {}", "-".repeat(2000)),
        format!("heron {}", "| a".repeat(1000)),
        "heron | \u{10FFFF}* | é* | 1e5* | a.b@c.d*".into(),
        "%s $1 ; DROP TABLE object; -- heron".into(),
    ] {
        ok!(me.objects().search_objects(query(&text)));
    }
    let mut dice = Dice::new(Dice::seed());
    let signs = [
        "(", ")", "&", "|", "!", "-", "\"", "'", "*", ":*", " ", "\\", "<->", "heron", "a", "é",
        "1.5", "@", "or", ":",
    ];
    for _ in 0..300 {
        let text: String =
            (0..dice.below(14)).map(|_| signs[dice.below(signs.len() as u64) as usize]).collect();
        if let Err(status) = me.objects().search_objects(query(&text)).await {
            panic!("{text:?}: {status:?}");
        }
    }
    world.close().await;
}

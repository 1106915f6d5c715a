//! Cursors and estimates, without a database. What a listing means is tested in tests/it/listing.rs.

use super::*;
use FieldKind::*;

static FIELDS: &[Field] = &[Field::new("priority", "d.priority", Int)];

#[test]
fn cursors_of_another_shape_are_refused() {
    let order = [Order { field: &FIELDS[0], desc: false }];
    let key = |texts: &[Option<&str>]| -> Vec<Option<String>> {
        texts.iter().map(|text| text.map(str::to_owned)).collect()
    };
    let uid = "00000000-0000-0000-0000-000000000001";
    assert!(Cursor::parse(&order, &key(&[Some("7"), Some(uid)])).is_some());
    for wrong in [
        key(&[]),
        key(&[Some(uid)]),
        key(&[None, Some(uid)]),
        key(&[Some("x"), Some(uid)]),
        key(&[Some("7"), None]),
        key(&[Some("7"), Some("8")]),
        key(&[Some("7"), Some("7"), Some(uid)]),
    ] {
        assert_eq!(Cursor::parse(&order, &wrong), None, "{wrong:?}");
    }
}

#[test]
fn plans_are_read() {
    let line = "Index Scan using i on t  (cost=0.42..8.44 rows=12 width=4)";
    assert_eq!(estimated_rows(line), Some(12));
    assert_eq!(estimated_rows("nothing"), None);
}

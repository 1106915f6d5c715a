//! What the protocol says about its messages, looked up by type: names and numbers of fields, and masks of them.

use crate::{Error, Reason, Result, pb};
use prost::encoding::{DecodeContext, decode_key, encode_key, skip_field};
use prost::{Message, Name};
use prost_types::FileDescriptorSet;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Numbers by message and field name.
static FIELDS: LazyLock<HashMap<String, HashMap<String, u32>>> = LazyLock::new(|| {
    // The set was compiled into the program; a test below shows that it can be read.
    let set = FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap_or_default();
    let messages = set.file.iter().flat_map(|file| {
        let of = |message: &prost_types::DescriptorProto| {
            let name = format!("{}.{}", file.package(), message.name());
            let numbers = message.field.iter();
            let numbers = numbers.map(|field| (field.name().to_owned(), field.number() as u32));
            (name, numbers.collect())
        };
        file.message_type.iter().map(of).collect::<Vec<_>>()
    });
    messages.collect()
});

/// The number of a field; `None` if the message has none of that name.
pub fn field<M: Name>(name: &str) -> Option<u32> {
    FIELDS.get(&M::full_name())?.get(name).copied()
}

/// The message with only those of its fields.
pub fn only<M: Message + Default>(message: &M, numbers: &[u32]) -> Result<M, prost::DecodeError> {
    let encoded = message.encode_to_vec();
    let mut kept = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_slice();
    while !rest.is_empty() {
        let (number, wire_type) = decode_key(&mut rest)?;
        let before = rest;
        skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
        if numbers.contains(&number) {
            encode_key(number, wire_type, &mut kept);
            kept.extend_from_slice(&before[..before.len() - rest.len()]);
        }
    }
    M::decode(kept.as_slice())
}

/// The parts of a resource that a read mask lets through.
pub struct ReadMask(Option<Vec<u32>>);

impl ReadMask {
    /// A mask on messages of a type. An empty one and "*" let everything through; the id always comes through.
    pub fn new<M: Name>(mask: Option<prost_types::FieldMask>) -> Result<Self> {
        let paths = mask.unwrap_or_default().paths;
        if paths.is_empty() || paths.iter().any(|path| path == "*") {
            return Ok(Self(None));
        }
        let mut numbers: Vec<u32> = field::<M>("id").into_iter().collect();
        for path in paths {
            let Some(number) = field::<M>(&path) else {
                let shown: String = path.chars().take(100).collect();
                let what = format!("names {shown:?}, which does not exist");
                return Err(Error::invalid_because(Reason::UnknownField, "read_mask", what));
            };
            numbers.push(number);
        }
        Ok(Self(Some(numbers)))
    }

    /// What the mask lets through.
    pub fn apply<M: Message + Default>(&self, message: M) -> Result<M> {
        match &self.0 {
            None => Ok(message),
            Some(numbers) => only(&message, numbers).map_err(Error::internal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_and_kept_by_number() {
        let id = field::<pb::Decision>("id").expect("a decision has an id");
        let labels = field::<pb::Decision>("labels").expect("and labels");
        assert_eq!(field::<pb::Decision>("nothing"), None);
        let labelled = [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())];
        let decision = pb::Decision {
            id: "d".into(),
            reason: "because".into(),
            labels: labelled.into(),
            avg_confidence: Some(0.0),
            ..Default::default()
        };
        let kept = only(&decision, &[id, labels]).expect("it can be read");
        let expected = pb::Decision { reason: String::new(), avg_confidence: None, ..decision };
        assert_eq!(kept, expected);
    }
}

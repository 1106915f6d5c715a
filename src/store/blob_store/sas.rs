//! Shared access signatures of Azure that say how the answer is to be saved, too: object_store's do not.

use super::sigv4::{encoded, mac};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use object_store::path::Path;
use object_store::signer::Url;

/// The key of an account, for the objects of one container. `Debug` does not show it.
pub struct Key {
    account: String,
    container: String,
    secret: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(of {} for {})", self.account, self.container)
    }
}

impl Key {
    /// None if `secret` is not base64.
    pub fn new(account: String, container: String, secret: &str) -> Option<Self> {
        let secret = BASE64_STANDARD.decode(secret).ok()?;
        Some(Self { account, container, secret })
    }

    /// Signs a URL of the object at `path` anew that object_store has signed: for the same, until the same second, and so
    /// that the answer has this `Content-Disposition`. It holds from before it is made, because clocks differ. None if the
    /// URL is not signed so.
    pub fn sign_again(&self, url: &Url, path: &Path, disposition: &str) -> Option<String> {
        let value = |wanted: &str| {
            url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
        };
        let (may, until) = (value("sp")?, value("se")?);
        let (version, what) = (value("sv")?, value("sr")?);
        let object = format!("/blob/{}/{}/{path}", self.account, self.container);
        // Permission, start, end, object, stored policy, addresses, protocol, version, kind, snapshot, encryption, and what
        // the answer says of itself: caching, disposition, encoding, language, type.
        let text = format!(
            "{may}\n\n{until}\n{object}\n\n\n\n{version}\n{what}\n\n\n\n{disposition}\n\n\n"
        );
        let signature = BASE64_STANDARD.encode(mac(&self.secret, &text)?);
        let query = [
            ("sv", &*version),
            ("se", &until),
            ("sr", &what),
            ("sp", &may),
            ("rscd", disposition),
            ("sig", &signature),
        ];
        let query = query.map(|(name, value)| format!("{name}={}", encoded(value)));
        let mut signed = url.clone();
        signed.set_query(Some(&query.join("&")));
        Some(signed.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature was made by Python's hmac, over the lines in the order of Azure's documentation of version 2020-12-06.
    #[test]
    fn signatures_are_those_of_the_documentation() {
        let secret = "c2VjcmV0IG9mIGFuIGFjY291bnQ=";
        let key = Key::new("records".into(), "blobs".into(), secret).unwrap();
        let url = "https://records.blob.core.windows.net/blobs/some/prefix/t/1";
        let query = "sv=2023-11-03&st=2026-11-22T19%3A00%3A00Z&se=2026-11-22T20%3A00%3A00Z&sr=b&sp=r&sig=other";
        let signed = Url::parse(&format!("{url}?{query}")).unwrap();
        let path = Path::from("some/prefix/t/1");
        let again = key.sign_again(&signed, &path, "attachment; filename=\"a b.pdf\"").unwrap();
        let expected = "sv=2023-11-03&se=2026-11-22T20%3A00%3A00Z&sr=b&sp=r\
                        &rscd=attachment%3B%20filename%3D%22a%20b.pdf%22\
                        &sig=L7ChzxfTFdNMjlbEQv1GWqax6nnmptSPPI7w52%2BZq%2FQ%3D";
        assert_eq!(again, format!("{url}?{expected}"));
        assert_eq!(key.sign_again(&Url::parse(url).unwrap(), &path, ""), None);
        assert!(Key::new("records".into(), "blobs".into(), "no base64").is_none());
        assert!(!format!("{key:?}").contains("115"), "{key:?}");
    }
}

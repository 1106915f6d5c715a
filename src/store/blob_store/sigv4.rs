//! Signature version 4 over a URL and headers of ours: object_store signs no Content-Length.

use crate::store::log::hex;
use hmac::{Hmac, Mac as _};
use object_store::signer::Url;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Signs a URL that was signed before anew, with the same moment and scope, and headers beside the host, whose names are in
/// lower case. None if the URL is not signed so.
pub fn sign_again(
    url: &Url,
    method: &str,
    headers: &[(&str, String)],
    secret_key: &str,
) -> Option<String> {
    let mut headers: Vec<(&str, String)> = headers.to_vec();
    let host = url.host_str()?;
    headers.push(("host", url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))));
    headers.sort();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let value = |wanted: &str| {
        url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    };
    let (credential, moment) = (value("X-Amz-Credential")?, value("X-Amz-Date")?);
    // Its last four parts: the name of the key before them may have any letters.
    let (at, _) = credential.rmatch_indices('/').nth(3)?;
    let scope = &credential[at + 1..];

    let mut query: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != "X-Amz-Signature" && name != "X-Amz-SignedHeaders")
        .map(|(name, value)| (encoded(&name), encoded(&value)))
        .collect();
    query.push(("X-Amz-SignedHeaders".into(), encoded(&names)));
    query.sort();
    let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let query = query.join("&");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let path = url.path();
    let request = format!("{method}\n{path}\n{query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD");
    let digest = hex(&Sha256::digest(request));
    let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}");
    let mut key = format!("AWS4{secret_key}").into_bytes();
    for part in scope.split('/') {
        key = mac(&key, part)?;
    }
    let signature = hex(&mac(&key, &text)?);

    let mut signed = url.clone();
    signed.set_query(Some(&format!("{query}&X-Amz-Signature={signature}")));
    Some(signed.into())
}

pub(super) fn mac(key: &[u8], text: &str) -> Option<Vec<u8>> {
    let mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    Some(mac.chain_update(text).finalize().into_bytes().to_vec())
}

/// All but letters, digits and `-._~` as `%XX`.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            // Writing to a String does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::signer::{HeaderName, HeaderValue, Method, SignedUrlOptions, Signer as _};
    use std::time::Duration;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    /// The example in Amazon's documentation of "Authenticating Requests: Using Query Parameters".
    #[test]
    fn signatures_are_those_of_the_documentation() {
        let url = "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
                   &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
                   &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=none&X-Amz-Signature=none";
        let signed = sign_again(&Url::parse(url).unwrap(), "GET", &[], SECRET).unwrap();
        let end = "X-Amz-SignedHeaders=host\
                   &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert!(signed.ends_with(end), "{signed}");
        let unsigned = Url::parse("https://examplebucket.s3.amazonaws.com/test.txt").unwrap();
        assert_eq!(sign_again(&unsigned, "GET", &[], SECRET), None);
    }

    /// Of headers that object_store does sign.
    #[tokio::test]
    async fn signatures_are_those_of_object_store() {
        // An error is that there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = AmazonS3Builder::new()
            .with_endpoint("http://127.0.0.1:9000")
            .with_allow_http(true)
            .with_region("eu-central-1")
            .with_bucket_name("bucket")
            .with_access_key_id("key/with+signs")
            .with_secret_access_key(SECRET)
            .with_token("a token/with+signs==")
            .build()
            .unwrap();
        let sum = ("x-amz-checksum-sha256", "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=");
        let name = HeaderName::from_static(sum.0);
        let options = SignedUrlOptions::new()
            .with_signed_header(name, HeaderValue::from_static(sum.1))
            .with_query([("response-content-disposition", "attachment; filename=\"a b\"")]);
        let (path, ttl) = (Path::from("t/1/upload/2"), Duration::from_secs(77));
        let theirs = store.signed_url_opts(Method::PUT, &path, ttl, &options).await.unwrap();
        let ours = sign_again(&theirs, "PUT", &[(sum.0, sum.1.to_owned())], SECRET).unwrap();
        let signature = |url: &Url| {
            let pairs: std::collections::BTreeMap<String, String> =
                url.query_pairs().into_owned().collect();
            pairs
        };
        assert_eq!(signature(&Url::parse(&ours).unwrap()), signature(&theirs));
    }
}

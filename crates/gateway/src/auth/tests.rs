//! Keys that were made for these tests, and tokens their owners signed; the private halves are gone.

use std::sync::LazyLock;

use carillon_domain::identity::Role;
use serde_json::json;

use super::{claims::App, jwks::KeySet, keys::Key, *};

static FIXTURES: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("fixtures.json")).unwrap());
/// The tokens were issued then, and expire in 2100.
const ISSUED: i64 = 1_700_000_000;
const NOW: Timestamp = Timestamp((ISSUED + 60) * 1_000);

fn jwk(algorithm: &str) -> Value {
    FIXTURES["signed"][algorithm]["jwk"].clone()
}

fn token(algorithm: &str) -> &'static str {
    FIXTURES["signed"][algorithm]["token"].as_str().unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "a literal wherever it is called")]
fn with(mut jwk: Value, more: Value) -> Value {
    jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    jwk
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), None).unwrap()
}

fn verifies(set: &KeySet, token: &str) -> bool {
    let Some(read) = Unverified::read(token, None) else { return false };
    let mut fit = set.keys.iter().filter(|key| key.fits(read.algorithm, read.kid.as_deref()));
    fit.any(|key| key.verify(token).is_some())
}

const ALL: [&str; 4] = ["RS256", "ES256", "ES384", "EdDSA"];

#[test]
fn a_set_verifies_what_the_owners_of_its_keys_have_signed_and_nothing_else() {
    let all = set(&ALL.map(jwk));
    assert_eq!((all.keys.len(), all.warnings.len()), (4, 0));
    for algorithm in ALL {
        assert!(verifies(&all, token(algorithm)), "{algorithm}");
        assert!(verifies(&set(&[jwk(algorithm)]), token(algorithm)), "{algorithm}");
        let named = with(jwk(algorithm), json!({ "alg": algorithm, "use": "sig" }));
        assert!(verifies(&set(&[named]), token(algorithm)), "{algorithm}");
        let others: Vec<Value> =
            ALL.into_iter().filter(|other| *other != algorithm).map(jwk).collect();
        assert!(!verifies(&set(&others), token(algorithm)), "{algorithm}");
        // The right key by another's name is not tried.
        let misnamed = with(jwk(algorithm), json!({ "kid": "another" }));
        assert!(!verifies(&set(&[misnamed]), token(algorithm)), "{algorithm}");
    }
}

#[test]
fn a_public_key_is_no_secret_and_no_signature_is_none() {
    let config = config::Key {
        algorithm: Some(Algorithm::RS256),
        public_key: Some(FIXTURES["rsa_pem"].as_str().unwrap().into()),
        secret: None,
        ..config::Key::hs256(config::Secret::from(""))
    };
    let pem = Key::from_config(&config).unwrap().unwrap();
    assert!(pem.fits(Algorithm::RS256, Some("k-RS256")));
    assert!(pem.verify(token("RS256")).is_some());
    let all = set(&ALL.map(jwk));
    for confused in FIXTURES["confused"].as_array().unwrap() {
        let confused = confused.as_str().unwrap();
        assert!(!verifies(&all, confused));
        assert!(!pem.fits(Algorithm::HS256, Some("k-RS256")));
        assert!(pem.verify(confused).is_none());
    }
    let (_, rest) = token("RS256").split_once('.').unwrap();
    let body = rest.split('.').next().unwrap();
    // {"alg":"none"}, with and without a signature.
    for none in [format!("eyJhbGciOiJub25lIn0.{body}."), format!("eyJhbGciOiJub25lIn0.{rest}")] {
        assert!(Unverified::read(&none, None).is_none());
    }
}

#[test]
fn a_key_of_the_wrong_kind_is_refused_at_the_start() {
    for (algorithm, named) in [
        (Algorithm::ES256, "public_key is not a PEM key for ES256"),
        (Algorithm::EdDSA, "public_key is not a PEM key for EdDSA"),
    ] {
        let key = config::Key {
            algorithm: Some(algorithm),
            public_key: Some(FIXTURES["rsa_pem"].as_str().unwrap().into()),
            secret: None,
            ..config::Key::hs256(config::Secret::from(""))
        };
        let Err(error) = Key::from_config(&key) else { panic!("{algorithm:?}") };
        assert!(format!("{error:#}").contains(named), "{error:#}");
    }
}

#[test]
fn what_cannot_be_used_is_left_out_and_named() {
    for (odd, why) in [
        (
            json!({ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75" }),
            "a secret",
        ),
        (json!({ "kty": "XYZ" }), "unknown type"),
        (json!({}), "no \"kty\""),
        (json!(7), "no \"kty\""),
        (with(jwk("RS256"), json!({ "alg": "HS256" })), "type does not allow"),
        (with(jwk("RS256"), json!({ "alg": "ES256" })), "type does not allow"),
        (with(jwk("ES256"), json!({ "alg": "ES384" })), "type does not allow"),
        (with(jwk("EdDSA"), json!({ "alg": "RS256" })), "type does not allow"),
        (with(jwk("RS256"), json!({ "alg": "RSA1_5" })), "not supported"),
        (with(jwk("ES256"), json!({ "crv": "secp256k1" })), "curve"),
        (with(jwk("ES256"), json!({ "crv": "P-384" })), "point of its curve"),
        (with(jwk("RS256"), json!({ "n": "AQAB" })), "2048 bits"),
        (with(jwk("EdDSA"), json!({ "x": "!".repeat(43) })), "base64url"),
    ] {
        let set = set(&[odd.clone(), jwk("ES384")]);
        assert_eq!(set.keys.len(), 1, "{odd}");
        assert!(set.warnings[0].contains(why), "{odd}: {:?}", set.warnings);
        assert!(verifies(&set, token("ES384")));
    }
    for silent in [json!({ "use": "enc" }), json!({ "key_ops": ["encrypt"] })] {
        let set = set(&[with(jwk("RS256"), silent)]);
        assert_eq!((set.keys.len(), set.warnings.len()), (0, 0));
    }
}

#[test]
fn a_set_is_bounded_holds_each_key_once_and_may_be_narrowed() {
    let many = |count: usize| -> String {
        let keys: Vec<Value> =
            (0..count).map(|n| with(jwk("EdDSA"), json!({ "kid": n.to_string() }))).collect();
        json!({ "keys": keys }).to_string()
    };
    assert_eq!(KeySet::parse(many(100).as_bytes(), None).unwrap().keys.len(), 100);
    assert!(KeySet::parse(many(101).as_bytes(), None).is_err());
    let padded = many(1) + &" ".repeat(jwks::MAX_BYTES);
    assert!(KeySet::parse(padded.as_bytes(), None).is_err());
    for garbage in ["", "[]", "{}", "{\"keys\":7}", "<html>"] {
        assert!(KeySet::parse(garbage.as_bytes(), None).is_err(), "{garbage}");
    }
    assert_eq!(set(&[jwk("ES256"), jwk("ES256")]).keys.len(), 1);
    let all = json!({ "keys": ALL.map(jwk) }).to_string();
    let narrow = KeySet::parse(all.as_bytes(), Some(Algorithm::EdDSA)).unwrap();
    assert_eq!((narrow.keys.len(), narrow.warnings.len()), (1, 0));
    assert!(verifies(&narrow, token("EdDSA")) && !verifies(&narrow, token("RS256")));
}

fn app(toml: &str) -> App {
    let config: config::App =
        toml::from_str(&format!("id = \"campus\"\ntenant = \"campus\"\n{toml}")).unwrap();
    App::new(&config, Vec::new(), &Origins::default()).unwrap()
}

fn read(app: &App, claims: &Value) -> Result<Said, Reason> {
    let basic = with(json!({ "sub": "ana", "iat": ISSUED, "exp": ISSUED + 900 }), claims.clone());
    app.read(basic.as_object().unwrap(), Moment { now: NOW, leeway: Duration::from_secs(10) })
}

#[test]
fn issuer_and_audience_may_be_one_of_several() {
    let strict = app("issuer = [\"https://a\", \"https://b\"]\naudience = \"chat\"");
    for good in [
        json!({ "iss": "https://b", "aud": "chat" }),
        json!({ "iss": "https://a", "aud": ["mail", "chat"] }),
    ] {
        assert!(read(&strict, &good).is_ok(), "{good}");
    }
    for (bad, reason) in [
        (json!({ "aud": "chat" }), Reason::Issuer),
        (json!({ "iss": "https://c", "aud": "chat" }), Reason::Issuer),
        (json!({ "iss": ["https://a"], "aud": "chat" }), Reason::Issuer),
        (json!({ "iss": "https://a" }), Reason::Audience),
        (json!({ "iss": "https://a", "aud": [] }), Reason::Audience),
        (json!({ "iss": "https://a", "aud": ["mail", 7] }), Reason::Audience),
        (json!({ "iss": "https://a", "aud": "chatter" }), Reason::Audience),
    ] {
        assert_eq!(read(&strict, &bad).err(), Some(reason), "{bad}");
    }
    assert!(read(&app(""), &json!({ "iss": "any", "aud": "any" })).is_ok());
}

#[test]
fn claims_are_found_by_the_names_the_app_gives_them() {
    let keycloak = app(concat!(
        "[claims]\nuser = [\"uid\"]\nrole = \"realm_access.roles\"\nname = \"display\"\n",
        "email = \"https://campus.example/mail\"\npicture = \"face.url\"\ntenant = \"org\"\n",
        "[roles]\nADMIN = \"PROCTOR\"\ndocent = \"MENTOR\"\n",
    ));
    let said = read(
        &keycloak,
        &json!({
            "uid": 42, "display": "Ana\u{0}", "https://campus.example/mail": "ana@campus.example",
            "face": { "url": "https://campus.example/ana.png" }, "org": "campus",
            "realm_access": { "roles": ["offline_access", "docent", "ADMIN"] },
        }),
    )
    .unwrap()
    .claims;
    assert_eq!(said.user.as_str(), "42");
    assert_eq!(said.name.as_deref(), Some("Ana"));
    assert_eq!(said.email.as_deref(), Some("ana@campus.example"));
    assert_eq!(said.avatar.as_deref(), Some("https://campus.example/ana.png"));
    // The app's own word wins over ours, and of several roles the highest counts.
    assert_eq!(said.role, Role::Mentor);
    let of = |claims: Value| read(&keycloak, &with(json!({ "uid": "a" }), claims));
    assert_eq!(of(json!({ "org": "other" })).err(), Some(Reason::Tenant));
    assert_eq!(of(json!({ "org": ["campus"] })).err(), Some(Reason::Tenant));
    let plain = of(json!({ "face": { "url": "javascript:alert(1)" } })).unwrap().claims;
    assert_eq!((plain.avatar, plain.role), (None, Role::Student));
    for (word, role) in [
        ("super_admin", Role::SuperAdmin),
        ("organization_admin", Role::ProgramAdmin),
        ("teacher", Role::Mentor),
        ("invigilator", Role::Proctor),
        ("janitor", Role::Student),
    ] {
        assert_eq!(read(&app(""), &json!({ "role": word })).unwrap().claims.role, role, "{word}");
    }
}

#[test]
fn nobody_is_named_as_the_system_or_a_backend_or_in_two_ways() {
    for bad in [
        json!({ "sub": " system" }),
        json!({ "sub": "api:backend" }),
        json!({ "sub": "" }),
        json!({ "sub": null }),
        json!({ "sub": ["ana"] }),
        json!({ "sub": 4.5 }),
        json!({ "sub": "x".repeat(129) }),
        json!({ "userId": "ben" }),
    ] {
        assert_eq!(read(&app(""), &bad).err(), Some(Reason::User), "{bad}");
    }
    assert!(read(&app(""), &json!({ "userId": "ana", "id": null })).is_ok());
}

#[test]
fn a_token_has_its_time() {
    let at = |claims: Value| read(&app(""), &claims);
    let seconds = NOW.0 / 1_000;
    assert!(!at(json!({ "exp": seconds - 9 })).unwrap().has_expired);
    assert!(at(json!({ "exp": seconds - 10 })).unwrap().has_expired);
    assert_eq!(at(json!({ "exp": "tomorrow" })).err(), Some(Reason::Claims));
    assert_eq!(at(json!({ "exp": null })).err(), Some(Reason::Claims));
    assert!(at(json!({ "nbf": seconds + 10 })).is_ok());
    assert_eq!(at(json!({ "nbf": seconds + 11 })).err(), Some(Reason::NotYet));
    assert_eq!(at(json!({ "nbf": "now" })).err(), Some(Reason::Claims));
    // Milliseconds where seconds belong would be newer than everything for ever.
    assert_eq!(at(json!({ "iat": NOW.0 })).unwrap().claims.issue.at, None);
    let issued = at(json!({})).unwrap().claims.issue.at;
    assert_eq!(issued, Some(Timestamp(ISSUED * 1_000)));
}

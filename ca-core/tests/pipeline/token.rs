//! Which tokens let a device in, and which must not.

use assay_ca_core::{
    AuthenticatedDevice, CLOCK_SKEW, MasterSecret, Overlapping, TOKEN_LIFETIME, Token, TokenRefused,
};
use assay_wire::{EkId, Scope};
use data_encoding::BASE64;
use time::{Duration, OffsetDateTime};

use crate::fixture::{now, offered};

const SCOPE: &str = "plant-7";
const DEVICE: &str = "pump:1";
const EK: [u8; 32] = [7; 32];

fn scope() -> Scope {
    SCOPE.parse().unwrap()
}

fn masters() -> Overlapping<MasterSecret> {
    master().into()
}

fn master() -> MasterSecret {
    MasterSecret::new([9; MasterSecret::LEN])
}

/// The fields of a token, which a test may change before it is written.
struct Fields {
    resource: String,
    signature: String,
    expiry: String,
    key_name: &'static str,
}

impl Fields {
    fn text(&self) -> String {
        let Self { resource, signature, expiry, key_name } = self;
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={key_name}")
    }
}

/// Percent-encodes everything except letters and digits.
fn encode(bytes: &[u8]) -> String {
    percent_encoding::percent_encode(bytes, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// What the device `device_id` signs with its key of this `generation`.
fn signed_by(device_id: &str, generation: u32, resource: &str, expiry: &str) -> Fields {
    let key = master().key(&scope(), &device_id.parse().unwrap(), &EkId::from(EK), generation);
    let mac = key.hmac(format!("{resource}\n{expiry}").as_bytes());
    Fields {
        resource: resource.to_owned(),
        signature: encode(BASE64.encode(&mac).as_bytes()),
        expiry: expiry.to_owned(),
        key_name: "registration",
    }
}

/// A token that is good for an hour.
fn good() -> Fields {
    until(now() + Duration::HOUR)
}

fn until(expires_at: OffsetDateTime) -> Fields {
    let resource = encode(format!("{SCOPE}/registrations/{DEVICE}").as_bytes());
    signed_by(DEVICE, 3, &resource, &expires_at.unix_timestamp().to_string())
}

fn verify_at(text: &str, now: OffsetDateTime) -> Result<AuthenticatedDevice, TokenRefused> {
    let token = Token::parse(DEVICE, text.as_bytes())?;
    AuthenticatedDevice::verify(offered(), token, &scope(), &masters(), EkId::from(EK), &[3], now)
}

fn verify(text: &str) -> Result<AuthenticatedDevice, TokenRefused> {
    verify_at(text, now())
}

fn refusal(text: &str) -> TokenRefused {
    verify(text).unwrap_err()
}

#[test]
fn token_of_the_device_authenticates_it() {
    let token = Token::parse(DEVICE, good().text().as_bytes()).unwrap();
    assert_eq!(token.device_id().as_str(), DEVICE);
    let device = verify(&good().text()).unwrap();
    assert_eq!(device.device_id().as_str(), DEVICE);
    assert_eq!(device.ek_id(), EkId::from(EK));
    assert_eq!(device.generation(), 3);
    assert_eq!(device.expires_at(), now() + Duration::HOUR);
}

/// Computed by Python's hmac, base64 and urllib, as the module's documentation says.
#[test]
fn token_made_by_others_authenticates() {
    const TOKEN: &str = "SharedAccessSignature \
                         sr=plant-7%2Fregistrations%2Fpump%3A1&sig=1JfTQz6O7mySBA0N%\
                         2BQ5e0KKaXTBtr6zUaT2VoKV4O7U%3D&se=1800003600&skn=registration";
    assert_eq!(verify(TOKEN).unwrap().generation(), 3);
}

#[test]
fn fields_may_come_in_any_order() {
    let fields = good();
    let (sr, sig) = (format!("sr={}", fields.resource), format!("sig={}", fields.signature));
    let (se, skn) = (format!("se={}", fields.expiry), "skn=registration".to_owned());
    for order in [[&skn, &se, &sig, &sr], [&se, &sr, &skn, &sig], [&sig, &skn, &sr, &se]] {
        let order = order.map(String::as_str).join("&");
        verify(&format!("SharedAccessSignature {order}")).unwrap();
    }
}

/// Clients differ in what they encode. The signature is over what was sent.
#[test]
fn resource_is_signed_as_it_was_sent() {
    let expiry = (now() + Duration::HOUR).unix_timestamp().to_string();
    let spellings = [
        "plant-7/registrations/pump:1",
        "plant-7%2Fregistrations%2Fpump%3A1",
        "plant-7%2fregistrations%2fpump%3a1",
    ];
    for spelling in spellings {
        let fields = signed_by(DEVICE, 3, spelling, &expiry);
        verify(&fields.text()).unwrap();
        for other in spellings.into_iter().filter(|other| *other != spelling) {
            let respelled =
                Fields { resource: other.to_owned(), ..signed_by(DEVICE, 3, spelling, &expiry) };
            assert!(matches!(refusal(&respelled.text()), TokenRefused::SignatureWrong { .. }));
        }
    }
}

#[test]
fn signature_may_be_encoded_or_not() {
    let fields = good();
    let decoded =
        percent_encoding::percent_decode_str(&fields.signature).decode_utf8().unwrap().into_owned();
    assert_ne!(fields.signature, decoded);
    verify(&Fields { signature: decoded, ..good() }.text()).unwrap();
}

mod form {
    use super::*;

    #[test]
    fn token_altered_in_any_byte_is_refused() {
        let text = good().text();
        let signature = text.find("&sig=").unwrap()..text.find("&se=").unwrap();
        for at in 0..text.len() {
            for change in [0x01, 0x20, 0x80, 0xFF] {
                let mut altered = text.clone().into_bytes();
                altered[at] ^= change;
                // The case of a hexadecimal digit in the signature's percent-encoding makes no
                // difference.
                let spelling =
                    signature.contains(&at) && text.as_bytes()[at - 2..at].contains(&b'%');
                if spelling && altered[at].eq_ignore_ascii_case(&text.as_bytes()[at]) {
                    continue;
                }
                let verified = Token::parse(DEVICE, &altered).and_then(|token| {
                    AuthenticatedDevice::verify(
                        offered(),
                        token,
                        &scope(),
                        &masters(),
                        EkId::from(EK),
                        &[3],
                        now(),
                    )
                });
                assert!(verified.is_err(), "byte {at}: {}", String::from_utf8_lossy(&altered));
            }
        }
        for cut in 0..text.len() {
            assert!(verify(&text[..cut]).is_err(), "cut at {cut}");
        }
        assert!(verify(&format!("{text} ")).is_err());
    }

    /// The longest token that encodes only what it must, with as many encoded letters of the scope
    /// on top.
    fn longest(letters: usize) -> Result<Token, TokenRefused> {
        let (scope, device_id) = ("s".repeat(32), ":".repeat(64));
        let encoded = format!("{}{}", "%73".repeat(letters), &scope[letters..]);
        let resource =
            format!("{encoded}{}", encode(format!("/registrations/{device_id}").as_bytes()));
        let signature = encode(BASE64.encode(&[0xFB, 0xEF, 0xBE].repeat(11)[..32]).as_bytes());
        assert_eq!(signature.len(), 42 * 3 + 1 + 3, "all but one digit are encoded");
        let fields = Fields {
            resource,
            signature,
            expiry: "9999999999".to_owned(),
            key_name: "registration",
        };
        assert_eq!(fields.text().len(), 434 + 2 * letters);
        Token::parse(&device_id, fields.text().as_bytes())
    }

    #[test]
    fn longest_token_that_encodes_what_it_must_is_read() {
        longest(0).unwrap();
        longest(32).unwrap();
    }

    #[test]
    fn token_that_is_too_long_is_refused() {
        let text = good().text();
        for (length, oversize) in [(512, false), (513, true), (65_535, true)] {
            let padded = format!("{text}{}", "&".repeat(length - text.len()));
            assert_eq!(matches!(refusal(&padded), TokenRefused::Oversize(_)), oversize, "{length}");
        }
    }

    #[test]
    fn password_that_is_no_token_is_refused() {
        let text = good().text();
        let lower = text.replacen("SharedAccessSignature ", "sharedaccesssignature ", 1);
        let bare = text.replacen("SharedAccessSignature ", "", 1);
        for password in ["", "secret", "SharedAccessSignature", &lower, &bare] {
            assert_eq!(refusal(password), TokenRefused::NoToken);
        }
        let not_utf8 = [text.as_bytes(), &[0xFF]].concat();
        assert_eq!(Token::parse(DEVICE, &not_utf8).unwrap_err(), TokenRefused::NoToken);
    }

    #[test]
    fn token_without_any_of_its_fields_is_refused() {
        let text = good().text();
        let (prefix, fields) = text.split_once(' ').unwrap();
        let fields: Vec<&str> = fields.split('&').collect();
        for (missing, name) in ["sr", "sig", "se", "skn"].into_iter().enumerate() {
            let mut rest = fields.clone();
            rest.remove(missing);
            let refusal = refusal(&format!("{prefix} {}", rest.join("&")));
            assert_eq!(refusal, TokenRefused::FieldMissing { field: name });
        }
        assert_eq!(refusal("SharedAccessSignature "), TokenRefused::FieldUnknown { position: 1 });
    }

    #[test]
    fn token_with_a_field_twice_is_refused() {
        let text = good().text();
        for (at, name) in ["sr", "sig", "se", "skn"].into_iter().enumerate() {
            let again = text.split_once(' ').unwrap().1.split('&').nth(at).unwrap();
            assert_eq!(
                refusal(&format!("{text}&{again}")),
                TokenRefused::FieldRepeated { field: name }
            );
            assert_eq!(
                refusal(&format!("{text}&{name}=")),
                TokenRefused::FieldRepeated { field: name }
            );
        }
    }

    #[test]
    fn token_with_an_unknown_field_is_refused() {
        let text = good().text();
        for unknown in ["x=1", "SR=1", "", "=", "sr", "api-version=1", " se=1"] {
            assert_eq!(
                refusal(&format!("{text}&{unknown}")),
                TokenRefused::FieldUnknown { position: 5 },
                "{unknown}"
            );
        }
    }

    #[test]
    fn token_of_another_kind_of_key_is_refused() {
        for key_name in ["", "Registration", "registrationRead", "%72egistration"] {
            assert_eq!(
                refusal(&Fields { key_name, ..good() }.text()),
                TokenRefused::KeyName { found: key_name.to_owned() }
            );
        }
    }

    #[test]
    fn token_whose_resource_is_no_registration_is_refused() {
        for resource in [
            "",
            "pump:1",
            "plant-7/registrations/",
            "/registrations/pump:1",
            "plant-7/registrations/pump:1/",
            "plant-7/registrations/pump:1/methods",
            "plant-7/Registrations/pump:1",
            "PLANT-7/registrations/pump:1",
            "plant-7/devices/pump:1",
            "plant-7%252Fregistrations%252Fpump:1",
            "plant-7%2registrations%2pump:1",
            "plant-7/registrations/%FF",
            "plant-7/registrations/pump+1",
        ] {
            let refused = refusal(&signed_by(DEVICE, 3, resource, &good().expiry).text());
            assert_eq!(refused, TokenRefused::Resource { found: resource.to_owned() });
        }
    }

    #[test]
    fn token_whose_expiry_has_another_spelling_is_refused() {
        let good = good();
        let expiry = &good.expiry;
        let spelled = [
            format!("+{expiry}"),
            format!("0{expiry}"),
            format!("{expiry}.0"),
            format!("{expiry} "),
        ];
        let others =
            ["", "-1", "-0", "00", "0x6B49D200", "1e9", "253402300800", "9223372036854775808"]
                .map(str::to_owned);
        for expiry in spelled.into_iter().chain(others) {
            let refused = refusal(&signed_by(DEVICE, 3, &good.resource, &expiry).text());
            assert_eq!(refused, TokenRefused::Expiry { found: expiry });
        }
    }

    #[test]
    fn token_whose_signature_is_not_base64_of_32_bytes_is_refused() {
        let encoded = |bytes: &[u8]| encode(BASE64.encode(bytes).as_bytes());
        let padded = BASE64.encode(&[0; 32]);
        let url_safe = padded.replace('A', "_");
        for signature in [
            "",
            &encoded(&[0; 31]),
            &encoded(&[0; 33]),
            &encoded(&[0; 20]),
            &encoded(&[]),
            &url_safe,
            padded.trim_end_matches('='),
            // The last digit has two bits that belong to no byte.
            &padded.replace("A=", "B="),
        ] {
            let refused = refusal(&Fields { signature: signature.to_owned(), ..good() }.text());
            assert_eq!(refused, TokenRefused::Signature, "{signature}");
        }
    }

    #[test]
    fn token_of_another_user_is_refused() {
        for user_name in ["", "pump:2", "PUMP:1", "plant-7/registrations/pump:1", "pump:1\0"] {
            let refused = Token::parse(user_name, good().text().as_bytes()).unwrap_err();
            assert_eq!(refused, TokenRefused::UserName { device_id: DEVICE.parse().unwrap() });
        }
    }

    #[test]
    fn token_is_printed_without_its_signature() {
        let token = Token::parse(DEVICE, good().text().as_bytes()).unwrap();
        assert_eq!(
            format!("{token:?}"),
            format!("Token(plant-7, pump:1, until {}, ..)", now() + Duration::HOUR)
        );
    }

    /// The refusal does not repeat what it found in place of a field: that may be another password,
    /// or a signature that lost its name.
    #[test]
    fn refusals_repeat_neither_passwords_nor_signatures() {
        let (text, fields) = (good().text(), good());
        for altered in [
            "hunter2".to_owned(),
            format!("SharedAccessSignature {}", fields.signature),
            text.replace("sig=", "SIG="),
            text.replace("sig=", ""),
            text.replace("sig=", "sig=x"),
            text.replace("skn=registration", "skn=x"),
            format!("{text}&{}", fields.signature),
            signed_by("pump:2", 3, &fields.resource, &fields.expiry).text(),
        ] {
            let refused = refusal(&altered);
            for printed in [refused.to_string(), format!("{refused:?}")] {
                assert!(
                    !printed.contains("hunter2") && !printed.contains(&fields.signature[..8]),
                    "{printed}"
                );
            }
        }
    }
}

mod checks {
    use super::*;

    #[test]
    fn token_of_another_scope_is_refused() {
        // Signed with the right key of the other scope: only the audience is wrong.
        let other: Scope = "plant-8".parse().unwrap();
        let (resource, expiry) = ("plant-8/registrations/pump:1", good().expiry);
        let key = master().key(&other, &DEVICE.parse().unwrap(), &EkId::from(EK), 3);
        let signature = BASE64.encode(&key.hmac(format!("{resource}\n{expiry}").as_bytes()));
        let fields =
            Fields { resource: resource.to_owned(), signature, expiry, key_name: "registration" };
        assert_eq!(
            refusal(&fields.text()),
            TokenRefused::AnotherScope { claimed: other, scope: scope() }
        );
        // Signed with this scope's key.
        let fields = signed_by(DEVICE, 3, resource, &good().expiry);
        assert!(matches!(refusal(&fields.text()), TokenRefused::AnotherScope { .. }));
    }

    #[test]
    fn token_may_be_valid_for_a_day_and_the_skew_of_clocks() {
        let latest = now() + TOKEN_LIFETIME + CLOCK_SKEW;
        assert_eq!(TOKEN_LIFETIME, Duration::hours(24));
        assert_eq!(CLOCK_SKEW, Duration::seconds(60));
        verify(&until(latest).text()).unwrap();
        let expires_at = latest + Duration::SECOND;
        assert_eq!(
            refusal(&until(expires_at).text()),
            TokenRefused::TooLongLived { expires_at, now: now() }
        );
    }

    #[test]
    fn token_is_refused_once_it_expired_longer_ago_than_the_skew_of_clocks() {
        verify(&until(now()).text()).unwrap();
        verify(&until(now() - CLOCK_SKEW + Duration::SECOND).text()).unwrap();
        let expires_at = now() - CLOCK_SKEW;
        assert_eq!(
            refusal(&until(expires_at).text()),
            TokenRefused::Expired { expires_at, now: now() }
        );
        verify_at(&good().text(), now() + Duration::HOUR + CLOCK_SKEW).unwrap_err();
    }

    #[test]
    fn ends_of_the_calendar_are_refused() {
        let expires_at = OffsetDateTime::from_unix_timestamp(253_402_300_799).unwrap();
        assert!(matches!(refusal(&until(expires_at).text()), TokenRefused::TooLongLived { .. }));
        let expires_at = OffsetDateTime::UNIX_EPOCH;
        assert!(matches!(refusal(&until(expires_at).text()), TokenRefused::Expired { .. }));
    }

    #[test]
    fn token_signed_with_another_devices_key_is_refused() {
        let good = good();
        let fields = signed_by("pump:2", 3, &good.resource, &good.expiry);
        let refused = refusal(&fields.text());
        assert_eq!(
            refused,
            TokenRefused::SignatureWrong {
                device_id: DEVICE.parse().unwrap(),
                generations: vec![3]
            }
        );
    }

    #[test]
    fn token_signed_with_the_key_of_another_ek_or_secret_is_refused() {
        let parse = || Token::parse(DEVICE, good().text().as_bytes()).unwrap();
        let refused = AuthenticatedDevice::verify(
            offered(),
            parse(),
            &scope(),
            &masters(),
            EkId::from([8; 32]),
            &[3],
            now(),
        );
        assert!(matches!(refused, Err(TokenRefused::SignatureWrong { .. })));
        let other = MasterSecret::new([10; MasterSecret::LEN]);
        let refused = AuthenticatedDevice::verify(
            offered(),
            parse(),
            &scope(),
            &other.clone().into(),
            EkId::from(EK),
            &[3],
            now(),
        );
        assert!(matches!(refused, Err(TokenRefused::SignatureWrong { .. })));
        // While the two overlap, both are good: nobody knows which secret a key is of.
        for both in [
            Overlapping::new(other.clone(), Some((now() + TOKEN_LIFETIME, master()))),
            Overlapping::new(master(), Some((now(), other))),
        ] {
            let ek = EkId::from(EK);
            AuthenticatedDevice::verify(offered(), parse(), &scope(), &both, ek, &[3], now())
                .unwrap();
            let retired =
                AuthenticatedDevice::verify(offered(), parse(), &scope(), &both, ek, &[4], now());
            assert!(matches!(retired, Err(TokenRefused::SignatureWrong { .. })));
        }
    }

    #[test]
    fn token_of_a_generation_in_force_tells_which() {
        let fields = good();
        for generation in [3, 4] {
            let text = signed_by(DEVICE, generation, &fields.resource, &fields.expiry).text();
            let token = Token::parse(DEVICE, text.as_bytes()).unwrap();
            let device = AuthenticatedDevice::verify(
                offered(),
                token,
                &scope(),
                &masters(),
                EkId::from(EK),
                &[3, 4],
                now(),
            )
            .unwrap();
            assert_eq!(device.generation(), generation);
        }
    }

    #[test]
    fn token_of_a_retired_generation_is_refused() {
        let verify = |generations: &[u32]| {
            let token = Token::parse(DEVICE, good().text().as_bytes()).unwrap();
            AuthenticatedDevice::verify(
                offered(),
                token,
                &scope(),
                &masters(),
                EkId::from(EK),
                generations,
                now(),
            )
        };
        for generations in [&[4][..], &[4, 5], &[2], &[]] {
            assert!(
                matches!(verify(generations), Err(TokenRefused::SignatureWrong { .. })),
                "{generations:?}"
            );
        }
    }

    /// The expiry is signed, so nobody can prolong a token.
    #[test]
    fn token_with_another_expiry_is_refused() {
        let expiry = (now() + Duration::HOUR + Duration::SECOND).unix_timestamp().to_string();
        assert!(matches!(
            refusal(&Fields { expiry, ..good() }.text()),
            TokenRefused::SignatureWrong { .. }
        ));
    }

    #[test]
    fn scope_is_checked_before_time_and_time_before_the_signature() {
        let (far, past) = (now() + Duration::WEEK, now() - Duration::WEEK);
        let unsigned = |resource: &str, expires_at: OffsetDateTime| {
            let signature = BASE64.encode(&[0; 32]);
            let expiry = expires_at.unix_timestamp().to_string();
            refusal(
                &Fields {
                    resource: resource.to_owned(),
                    signature,
                    expiry,
                    key_name: "registration",
                }
                .text(),
            )
        };
        let here = "plant-7/registrations/pump:1";
        assert!(matches!(
            unsigned("plant-8/registrations/pump:1", far),
            TokenRefused::AnotherScope { .. }
        ));
        assert!(matches!(unsigned(here, far), TokenRefused::TooLongLived { .. }));
        assert!(matches!(unsigned(here, past), TokenRefused::Expired { .. }));
        assert!(matches!(unsigned(here, now()), TokenRefused::SignatureWrong { .. }));
    }

    #[test]
    fn refusals_name_the_values_compared() {
        let expires_at = now() - Duration::HOUR;
        let text = refusal(&until(expires_at).text()).to_string();
        assert_eq!(text, format!("the token expired at {expires_at}; the time is {}", now()));
        let text =
            refusal(&signed_by(DEVICE, 2, &good().resource, &good().expiry).text()).to_string();
        assert!(text.contains(DEVICE) && text.contains("[3]"), "{text}");
    }
}

//! PKCS #11 URIs (RFC 7512): which library, which token in it, which key on that.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use minicbor::{Decode, Encode};

/// A key in a token, or a token in which one is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    module: PathBuf,
    token: TokenSelector,
    key: KeySelector,
    pin_file: Option<PathBuf>,
}

/// What a token has to have (RFC 7512 §2.3). At least one of these is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct TokenSelector {
    /// Its label.
    #[n(0)]
    pub label: Option<String>,
    /// Its manufacturer.
    #[n(1)]
    pub manufacturer: Option<String>,
    /// Its serial number.
    #[n(2)]
    pub serial: Option<String>,
    /// Its model.
    #[n(3)]
    pub model: Option<String>,
}

/// What a key has to have. Without either, it is no key's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct KeySelector {
    /// `CKA_LABEL`.
    #[n(0)]
    pub object: Option<String>,
    /// `CKA_ID`.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub id: Option<Vec<u8>>,
}

impl Uri {
    /// The vendor's library.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// Which token.
    pub fn token(&self) -> &TokenSelector {
        &self.token
    }

    /// Which key; `None` if the URI names none.
    pub fn key(&self) -> Option<&KeySelector> {
        Some(&self.key).filter(|key| **key != KeySelector::default())
    }

    /// The file with the PIN, if the URI names one.
    pub fn pin_file(&self) -> Option<&Path> {
        self.pin_file.as_deref()
    }

    /// The same token with this key.
    #[must_use]
    pub fn with_key(self, key: KeySelector) -> Self {
        Self { key, ..self }
    }
}

/// Reads a file of URIs, one a line: the same key in several tokens, in the order in which they are
/// tried.
///
/// # Errors
/// There is none or are too many, one cannot be read, or one names no key.
pub fn parse_uris(text: &str) -> Result<Vec<Uri>, UriError> {
    let uris = text.lines().filter(|line| !line.trim().is_empty());
    let uris = uris.map(|line| line.trim().parse::<Uri>()).collect::<Result<Vec<_>, _>>()?;
    if uris.is_empty() || uris.len() > MAX_URIS {
        return Err(UriError::Count(uris.len()));
    }
    match uris.iter().find(|uri| uri.key().is_none()) {
        Some(_) => Err(UriError::NoKey),
        None => Ok(uris),
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > MAX_URI {
            return Err(UriError::Long);
        }
        // RFC 3986 §2: everything else is percent-encoded.
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        if let Some(position) = text.bytes().position(|byte| !is_allowed(byte)) {
            return Err(UriError::Character { position });
        }
        let rest = text.strip_prefix("pkcs11:").ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut raw = Raw::default();
        path.split(';').filter(|it| !it.is_empty()).try_for_each(|it| raw.take_path(it))?;
        query.split('&').filter(|it| !it.is_empty()).try_for_each(|it| raw.take_query(it))?;
        raw.checked()
    }
}

/// The attributes of a URI as they were given.
#[derive(Default)]
struct Raw {
    module: Option<PathBuf>,
    token: TokenSelector,
    key: KeySelector,
    is_private: Option<()>,
    pin_file: Option<PathBuf>,
}

impl Raw {
    fn take_path(&mut self, attribute: &str) -> Result<(), UriError> {
        let (name, value) = split(attribute)?;
        match name {
            "token" => once(&mut self.token.label, name, text(name, value, 32)?),
            "manufacturer" => once(&mut self.token.manufacturer, name, text(name, value, 32)?),
            "serial" => once(&mut self.token.serial, name, text(name, value, 16)?),
            "model" => once(&mut self.token.model, name, text(name, value, 16)?),
            "object" => once(&mut self.key.object, name, text(name, value, MAX_LABEL)?),
            "id" => once(&mut self.key.id, name, bytes(name, value, MAX_ID)?),
            "type" if value == "private" => once(&mut self.is_private, name, ()),
            // A token that lacks what the URI asks for must not be taken (§2.3), so nothing that
            // the URI says may be passed over.
            _ => Err(UriError::Attribute(shown(attribute))),
        }
    }

    fn take_query(&mut self, attribute: &str) -> Result<(), UriError> {
        let (name, value) = split(attribute)?;
        match name {
            "module-path" => {
                let path = PathBuf::from(text(name, value, MAX_PATH)?);
                if !path.is_absolute() {
                    return Err(UriError::ModulePath);
                }
                once(&mut self.module, name, path)
            }
            "pin-source" => {
                let source = text(name, value, MAX_PATH)?;
                let path = source.strip_prefix("file:").unwrap_or(&source);
                let path = path.strip_prefix("//").unwrap_or(path);
                if !path.starts_with('/') {
                    return Err(UriError::PinSource);
                }
                once(&mut self.pin_file, name, path.into())
            }
            "pin-value" => Err(UriError::PinValue),
            _ => Err(UriError::Attribute(shown(attribute))),
        }
    }

    fn checked(self) -> Result<Uri, UriError> {
        let Self { module, token, key, pin_file, .. } = self;
        let module = module.ok_or(UriError::NoModule)?;
        if token == TokenSelector::default() {
            return Err(UriError::NoToken);
        }
        Ok(Uri { module, token, key, pin_file })
    }
}

fn split(attribute: &str) -> Result<(&str, &str), UriError> {
    attribute.split_once('=').ok_or_else(|| UriError::Attribute(shown(attribute)))
}

/// No attribute comes twice (§2.3).
fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::Twice(name.to_owned())),
    }
}

fn bytes(name: &str, value: &str, longest: usize) -> Result<Vec<u8>, UriError> {
    let unreadable = || UriError::Value { name: name.to_owned(), longest };
    let (mut decoded, mut rest) = (Vec::new(), value.bytes());
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || {
                    let digit = rest.next().and_then(|it| char::from(it).to_digit(16));
                    digit.and_then(|digit| u8::try_from(digit).ok()).ok_or_else(unreadable)
                };
                digit()? << 4 | digit()?
            }
            byte => byte,
        };
        decoded.push(byte);
    }
    if decoded.is_empty() || decoded.len() > longest {
        return Err(unreadable());
    }
    Ok(decoded)
}

fn text(name: &str, value: &str, longest: usize) -> Result<String, UriError> {
    let text = String::from_utf8(bytes(name, value, longest)?).ok();
    let text = text.filter(|text| !text.contains(char::is_control));
    text.ok_or_else(|| UriError::Value { name: name.to_owned(), longest })
}

/// An attribute for an error: what may be a PIN stays out.
fn shown(attribute: &str) -> String {
    attribute.split('=').next().unwrap_or_default().to_owned()
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { module, token, key, pin_file } = self;
        let TokenSelector { label, manufacturer, serial, model } = token;
        let path = [
            ("token", label.as_deref().map(str::as_bytes)),
            ("manufacturer", manufacturer.as_deref().map(str::as_bytes)),
            ("serial", serial.as_deref().map(str::as_bytes)),
            ("model", model.as_deref().map(str::as_bytes)),
            ("object", key.object.as_deref().map(str::as_bytes)),
        ];
        f.write_str("pkcs11:")?;
        let path = path.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let mut separator = "";
        for (name, value) in path {
            write!(f, "{separator}{name}=")?;
            encoded(f, value)?;
            separator = ";";
        }
        if let Some(id) = &key.id {
            write!(f, "{separator}id=")?;
            id.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        }
        f.write_str("?module-path=")?;
        encoded(f, module.as_os_str().as_encoded_bytes())?;
        if let Some(file) = pin_file {
            f.write_str("&pin-source=file:")?;
            encoded(f, file.as_os_str().as_encoded_bytes())?;
        }
        Ok(())
    }
}

/// Everything is percent-encoded but what needs it nowhere (RFC 3986 §2.3), and the slash.
fn encoded(f: &mut fmt::Formatter<'_>, value: &[u8]) -> fmt::Result {
    for &byte in value {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for TokenSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, manufacturer, serial, model } = self;
        let all = [label, serial, model, manufacturer];
        let all: Vec<_> = all.into_iter().flatten().map(|it| format!("{it:?}")).collect();
        f.write_str(&all.join(" "))
    }
}

impl fmt::Display for KeySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.object, &self.id) {
            (Some(object), Some(id)) => write!(f, "{object:?} (id {})", hex::encode(id)),
            (Some(object), None) => write!(f, "{object:?}"),
            (None, Some(id)) => write!(f, "with id {}", hex::encode(id)),
            (None, None) => f.write_str("without a name"),
        }
    }
}

/// Why a text is no URI of a key or token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum UriError {
    #[error("it does not begin with pkcs11:")]
    Scheme,
    #[error("it has more than {MAX_URI} bytes")]
    Long,
    #[error("byte {position} may not be in a URI; write it as % and two hexadecimal digits")]
    Character { position: usize },
    #[error(
        "attribute {0:?} is not known here; known are token, manufacturer, serial, model, object, \
         id, type=private, and after the ? module-path and pin-source"
    )]
    Attribute(String),
    #[error("attribute {0} comes twice")]
    Twice(String),
    #[error("the value of {name} is not 1 to {longest} bytes of text, percent-encoded")]
    Value { name: String, longest: usize },
    #[error("it names no token; say token=LABEL or serial=NUMBER")]
    NoToken,
    #[error("it names no key; say object=LABEL or id=%XX…")]
    NoKey,
    #[error("it names no library; say ?module-path=/path/to/the/vendor's.so")]
    NoModule,
    #[error("module-path is not a path from / on")]
    ModulePath,
    #[error("pin-source is not file: and a path from / on")]
    PinSource,
    #[error(
        "a PIN does not belong in a URI, which others can read; put it into a file of mode 0600, \
         and say pin-source=file:/path/to/it"
    )]
    PinValue,
    #[error("there are {0} URIs in the file, not 1 to {MAX_URIS}")]
    Count(usize),
}

/// Longer than any path and all labels together.
const MAX_URI: usize = 4096;
/// The longest path of a file in a URI.
const MAX_PATH: usize = 1024;
/// The longest label of a key. PKCS #11 names no limit; tokens have lower ones.
const MAX_LABEL: usize = 255;
/// The longest id of a key.
const MAX_ID: usize = 128;
/// As many tokens as have the same key: each costs a process.
const MAX_URIS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "pkcs11:token=The%20CA;serial=4711;object=issuing;id=%01%AB\
                         ?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin";

    #[test]
    fn pkcs11_uri_reads_back_as_written() {
        let uri: Uri = WHOLE.parse().unwrap();
        assert_eq!(uri.to_string(), WHOLE);
        assert_eq!(uri.token().label.as_deref(), Some("The CA"));
        assert_eq!(uri.key().unwrap().id.as_deref(), Some(&[1, 0xab][..]));
        assert_eq!(uri.pin_file(), Some(Path::new("/run/pin")));
        let short: Uri = "pkcs11:serial=1;type=private?module-path=/a.so".parse().unwrap();
        assert_eq!((short.key(), short.pin_file()), (None, None));
        let key = KeySelector { object: Some("x;y".into()), id: None };
        let named = short.with_key(key.clone());
        assert_eq!(named.to_string().parse::<Uri>().unwrap().key(), Some(&key));
        for source in ["file:/run/pin", "file:///run/pin", "/run/pin", "%2Frun%2Fpin"] {
            let text = format!("pkcs11:token=a?module-path=/a.so&pin-source={source}");
            let uri: Uri = text.parse().unwrap();
            assert_eq!(uri.pin_file(), Some(Path::new("/run/pin")), "{source}");
        }
    }

    #[test]
    fn pkcs11_uri_that_says_something_else_is_refused() {
        let tail = "?module-path=/a.so";
        for (text, error) in [
            (format!("http:token=a{tail}"), UriError::Scheme),
            (format!("pkcs11:token=a b{tail}"), UriError::Character { position: 14 }),
            (format!("pkcs11:token=ü{tail}"), UriError::Character { position: 13 }),
            (format!("pkcs11:token=a;slot-id=1{tail}"), UriError::Attribute("slot-id".into())),
            (format!("pkcs11:token=a;type=cert{tail}"), UriError::Attribute("type".into())),
            (format!("pkcs11:token=a;token=b{tail}"), UriError::Twice("token".into())),
            (format!("pkcs11:token{tail}"), UriError::Attribute("token".into())),
            (format!("pkcs11:object=a{tail}"), UriError::NoToken),
            (format!("pkcs11:token=a{tail}&pin-value=1234"), UriError::PinValue),
            (format!("pkcs11:token=a{tail}&pin-source=|cat"), UriError::Character { position: 44 }),
            (format!("pkcs11:token=a{tail}&pin-source=%7Ccat"), UriError::PinSource),
            (
                format!("pkcs11:token=a{tail}&module-name=x"),
                UriError::Attribute("module-name".into()),
            ),
            ("pkcs11:token=a".into(), UriError::NoModule),
            ("pkcs11:token=a?module-path=a.so".into(), UriError::ModulePath),
            (format!("pkcs11:token={}{tail}", "a".repeat(MAX_URI)), UriError::Long),
        ] {
            assert_eq!(text.parse::<Uri>(), Err(error), "{text}");
        }
        for value in ["", "%", "%4", "%4g", "%FF", "%0A", &"a".repeat(33)] {
            let error = UriError::Value { name: "token".into(), longest: 32 };
            assert_eq!(format!("pkcs11:token={value}{tail}").parse::<Uri>(), Err(error), "{value}");
        }
    }

    #[test]
    fn pkcs11_file_has_one_to_eight_uris_that_name_a_key() {
        assert_eq!(parse_uris(&format!("{WHOLE}\n\n{WHOLE}\n")).unwrap().len(), 2);
        assert_eq!(parse_uris("\n"), Err(UriError::Count(0)));
        assert_eq!(parse_uris(&format!("{WHOLE}\n").repeat(9)), Err(UriError::Count(9)));
        assert_eq!(parse_uris("pkcs11:token=a?module-path=/a.so"), Err(UriError::NoKey));
    }
}

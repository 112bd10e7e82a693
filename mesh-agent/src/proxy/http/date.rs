//! The `date` header of responses that have none (RFC 9110, 6.6.1).
//!
//! In: the time of day. Out: it in the form of RFC 9110, 5.6.7, made once a second and thread. Never: another time zone.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// A date as a header's value.
pub(super) type Date = [u8; 29];

const DAYS: [&[u8; 3]; 7] = [b"Sun", b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat"];
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

thread_local! {
    static LAST: Cell<(u64, Date)> = Cell::new((0, at(0)));
}

/// The date now.
pub(super) fn now() -> Date {
    // A clock before 1970 shows 1970.
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (last, date) = LAST.get();
    if last == second {
        return date;
    }
    let date = at(second);
    LAST.set((second, date));
    date
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn at(second: u64) -> Date {
    let days = second / 86_400;
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[..3].copy_from_slice(DAYS[((days + 4) % 7) as usize]);
    text[8..11].copy_from_slice(MONTHS[(month - 1) as usize]);
    two(&mut text, 12, year / 100);
    for (at, number) in [(5, day), (14, year), (17, second / 3600 % 24), (20, second / 60), (23, second)] {
        two(&mut text, at, if at >= 20 { number % 60 } else { number });
    }
    text
}

/// The last two digits.
fn two(text: &mut Date, at: usize, number: u64) {
    text[at] = b"0123456789"[(number / 10 % 10) as usize];
    text[at + 1] = b"0123456789"[(number % 10) as usize];
}

/// Year, month and day of a day since 1970 (of the proleptic Gregorian calendar).
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that begin in March, in eras of 400: their last day is the leap day.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_the_standard_writes_them() {
        for (second, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_102_444_800, "Fri, 01 Jan 2100 00:00:00 GMT"),
        ] {
            assert_eq!(at(second), *text.as_bytes(), "{text}");
        }
        assert_eq!(now()[25..], *b" GMT");
    }
}

//! A small Bookinfo: productpage → details, reviews (v1, v2, v3) → ratings. The shape is that of Istio's sample.
//!
//! In: HTTP requests. Out: JSON that tells which pod and version answered. Headers that steer routing are passed on.

use clap::Args;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName};
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use crate::http::{self, Ends};

/// Headers that a page passes on to the pages it asks.
const FORWARDED: [&str; 6] = ["end-user", "x-marker", "x-request-id", "traceparent", "tracestate", "b3"];

/// Which page of the application a process serves.
#[derive(Debug, Clone, Copy)]
pub enum Page {
    Product,
    Details,
    Reviews,
    Ratings,
}

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Port to listen on.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// Version: v1, v2 or v3.
    #[arg(long, env = "VERSION", default_value = "v1")]
    version: String,
    /// Where details are.
    #[arg(long, env = "DETAILS", default_value = "details:9080")]
    details: String,
    /// Where reviews are.
    #[arg(long, env = "REVIEWS", default_value = "reviews:9080")]
    reviews: String,
    /// Where ratings are.
    #[arg(long, env = "RATINGS", default_value = "ratings:9080")]
    ratings: String,
}

pub async fn serve(page: Page, options: Options) -> anyhow::Result<()> {
    let port = options.port;
    http::serve(port, move |request, ends| answer(page, options.clone(), request, ends)).await
}

async fn answer(page: Page, options: Options, request: Request<Incoming>, ends: Ends) -> (StatusCode, Value) {
    let path = request.uri().path().to_owned();
    let headers = forwarded(request.headers());
    let about = json!({
        "pod": std::env::var("POD_NAME").unwrap_or_default(),
        "version": options.version,
        "client": ends.peer.to_string(),
    });
    let expected = match page {
        Page::Product => "/productpage",
        Page::Details => "/details",
        Page::Reviews => "/reviews",
        Page::Ratings => "/ratings",
    };
    // The front page is also what a browser asks for first.
    let front = path == "/" && matches!(page, Page::Product);
    if !front && !path.starts_with(expected) {
        return (StatusCode::NOT_FOUND, json!({"from": about, "error": format!("nothing at {path}, try {expected}")}));
    }
    let content = match page {
        Page::Product => {
            let (details, reviews) = tokio::join!(
                http::get(&options.details, "/details/0", &headers),
                http::get(&options.reviews, "/reviews/0", &headers)
            );
            json!({"details": or_error(details), "reviews": or_error(reviews)})
        }
        Page::Details => json!({"title": "The Comedy of Errors", "author": "William Shakespeare", "pages": 200}),
        Page::Reviews => {
            let color = match options.version.as_str() {
                "v2" => Some("black"),
                "v3" => Some("red"),
                _ => None,
            };
            let stars = match color {
                Some(color) => {
                    let ratings = http::get(&options.ratings, "/ratings/0", &headers).await;
                    json!({"color": color, "ratings": or_error(ratings)})
                }
                None => Value::Null,
            };
            json!({"reviews": ["An extremely entertaining play.", "Absolutely fun."], "stars": stars})
        }
        Page::Ratings => json!({"ratings": {"Reviewer1": 5, "Reviewer2": 4}}),
    };
    (StatusCode::OK, json!({"from": about, "content": content}))
}

fn or_error(answer: anyhow::Result<Value>) -> Value {
    answer.unwrap_or_else(|e| json!({"error": format!("{e:#}")}))
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    FORWARDED.iter().filter_map(|&name| Some((HeaderName::from_static(name), headers.get(name)?.clone()))).collect()
}

//! The programs that run in the lab's pods: a Bookinfo-like application, echo servers, and clients that check what they
//! get. They know nothing of the mesh.
//!
//! In: a role and its options. Out: servers log to stdout and run until killed; clients print one line of JSON.

use clap::{Parser, Subcommand};

mod bookinfo;
mod bulk;
mod churn;
mod dial;
mod hold;
mod http;
mod steady;
mod tcp;

#[derive(Parser)]
#[command(about = "Servers and clients for the pods of a lab")]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Bookinfo's front page: asks `details` and `reviews`.
    Productpage(bookinfo::Options),
    /// Facts about a book.
    Details(bookinfo::Options),
    /// Reviews of a book; from v2 on with stars, for which it asks `ratings`.
    Reviews(bookinfo::Options),
    /// Stars.
    Ratings(bookinfo::Options),
    /// Answers every HTTP request with what it saw: peer, local address, method, path, headers.
    HttpEcho {
        /// Port to listen on, IPv4 and IPv6.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Does what the first line of a connection says: echo, count, reset, whoami, wait.
    Tcp {
        /// Port to listen on, IPv4 and IPv6.
        #[arg(long, default_value_t = 9000)]
        port: u16,
        /// Speak first: `peer ADDRESS local ADDRESS`.
        #[arg(long)]
        greet: bool,
    },
    /// Connects, says a line, and prints what came back and how it ended.
    Talk(tcp::Talk),
    /// Holds many connections at once and checks that each echoes its own words.
    Hold(hold::Options),
    /// Opens and closes many short connections and checks that each echoes its own words.
    Churn(churn::Options),
    /// Gives and takes bodies of any length, over HTTP/1 and HTTP/2.
    BulkServe(bulk::Serve),
    /// Sends a body of that length to `bulk-serve`, or asks for one, and checks every byte.
    Bulk(bulk::Transfer),
    /// Connects for a test, and hands it the sockets.
    Dial(dial::Options),
    /// Keeps asking until SIGTERM, then prints how many answers were right.
    Steady(steady::Options),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.role {
            Role::Productpage(options) => bookinfo::serve(bookinfo::Page::Product, options).await,
            Role::Details(options) => bookinfo::serve(bookinfo::Page::Details, options).await,
            Role::Reviews(options) => bookinfo::serve(bookinfo::Page::Reviews, options).await,
            Role::Ratings(options) => bookinfo::serve(bookinfo::Page::Ratings, options).await,
            Role::HttpEcho { port } => http::serve(port, http::echo).await,
            Role::Tcp { port, greet } => tcp::serve(port, greet).await,
            Role::Talk(options) => tcp::talk(options).await,
            Role::Hold(options) => hold::run(options).await,
            Role::Churn(options) => churn::run(options).await,
            Role::BulkServe(options) => bulk::serve(options).await,
            Role::Bulk(options) => bulk::transfer(options).await,
            Role::Dial(options) => dial::run(&options),
            Role::Steady(options) => steady::run(options).await,
        }
    })
}

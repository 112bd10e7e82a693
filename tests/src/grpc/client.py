"""The interoperability cases of gRPC, by name, against the server beside this file.

In: its address. Out: one line of JSON, `{case: what was wrong}`, with an empty text for a case that passed.
"""

import json
import sys
import threading
import time

import grpc

SERVICE = "/conform.Test/"
# Longest that a call takes, in seconds.
LIMIT = 20
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def message(size, length=4):
    return size.to_bytes(4, "big") + bytes(length - 4)


def expect(holds, *seen):
    if not holds:
        raise AssertionError(" ".join(map(str, seen)))


def unary(channel, method="Unary"):
    return channel.unary_unary(SERVICE + method)


def refused(call):
    """The error that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call has succeeded")


@case
def empty_unary(channel):
    expect(unary(channel, "Empty")(b"", timeout=LIMIT) == b"")


@case
def large_unary(channel):
    answer = unary(channel)(message(314159, 271828), timeout=LIMIT)
    expect(len(answer) == 314159, len(answer))


@case
def unary_of_four_mebibytes(channel):
    answer = unary(channel)(message(4 << 20, 4 << 20), timeout=LIMIT)
    expect(len(answer) == 4 << 20, len(answer))


@case
def client_compressed_unary(channel):
    answer = unary(channel)(message(314159, 271828), timeout=LIMIT, compression=grpc.Compression.Gzip)
    expect(len(answer) == 314159, len(answer))


@case
def server_compressed_unary(channel):
    answer = unary(channel)(message(314159), timeout=LIMIT, metadata=(("x-compress", "1"),))
    expect(len(answer) == 314159, len(answer))


@case
def client_streaming(channel):
    sizes = [27182, 8, 1828, 45904]
    answer = channel.stream_unary(SERVICE + "StreamIn")((message(0, size) for size in sizes), timeout=LIMIT)
    expect(int.from_bytes(answer, "big") == sum(sizes), answer)


@case
def server_streaming(channel):
    sizes = [31415, 9, 2653, 58979]
    request = b"".join(size.to_bytes(4, "big") for size in sizes)
    answers = [len(answer) for answer in channel.unary_stream(SERVICE + "StreamOut")(request, timeout=LIMIT)]
    expect(answers == sizes, answers)


@case
def server_streaming_of_many(channel):
    request = b"".join((100).to_bytes(4, "big") for _ in range(2000))
    answers = sum(1 for _ in channel.unary_stream(SERVICE + "StreamOut")(request, timeout=LIMIT))
    expect(answers == 2000, answers)


@case
def ping_pong(channel):
    sizes = [31415, 9, 2653, 58979]
    turn = threading.Semaphore(1)

    def requests():
        for size in sizes:
            turn.acquire()
            yield message(size, 27182)

    answers = []
    for answer in channel.stream_stream(SERVICE + "Both")(requests(), timeout=LIMIT):
        answers.append(len(answer))
        turn.release()
    expect(answers == sizes, answers)


@case
def empty_stream(channel):
    answers = list(channel.stream_stream(SERVICE + "Both")(iter(()), timeout=LIMIT))
    expect(answers == [], answers)


@case
def custom_metadata(channel):
    binary = b"\xab\xab\x00\xff\x01"
    sent = (("x-initial", "test value"), ("x-trailing-bin", binary))
    answer, call = unary(channel).with_call(message(10), timeout=LIMIT, metadata=sent)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    expect(initial.get("x-initial") == "test value", initial)
    expect(trailing.get("x-trailing-bin") == binary, trailing)
    call = channel.stream_stream(SERVICE + "Both")(iter([message(10)]), timeout=LIMIT, metadata=sent)
    expect([len(answer) for answer in call] == [10])
    expect(dict(call.initial_metadata()).get("x-initial") == "test value", call.initial_metadata())
    expect(dict(call.trailing_metadata()).get("x-trailing-bin") == binary, call.trailing_metadata())


def status(channel, code, text):
    sent = (("x-code", str(code)), ("x-message-hex", text.encode().hex()))
    error = refused(lambda: unary(channel)(message(0), timeout=LIMIT, metadata=sent))
    expect(error.code().value[0] == code and error.details() == text, error.code(), repr(error.details()))
    expect(dict(error.trailing_metadata()).get("x-beside") == "told", error.trailing_metadata())


@case
def status_code_and_message(channel):
    status(channel, 2, "test status message")


@case
def special_status_message(channel):
    status(channel, 2, "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n")


@case
def every_status_code(channel):
    for code in range(1, 17):
        status(channel, code, f"code {code}")


@case
def unimplemented_method(channel):
    error = refused(lambda: unary(channel, "Nothing")(b"", timeout=LIMIT))
    expect(error.code() == grpc.StatusCode.UNIMPLEMENTED, error.code())


@case
def unimplemented_service(channel):
    error = refused(lambda: channel.unary_unary("/conform.Nothing/Unary")(b"", timeout=LIMIT))
    expect(error.code() == grpc.StatusCode.UNIMPLEMENTED, error.code())


def waiting():
    """Requests that never come."""
    threading.Event().wait(LIMIT)
    yield b""


@case
def cancel_after_begin(channel):
    call = channel.stream_unary(SERVICE + "StreamIn").future(waiting(), timeout=LIMIT)
    call.cancel()
    expect(call.code() == grpc.StatusCode.CANCELLED, call.code())


@case
def cancel_after_first_response(channel):
    done = threading.Event()

    def requests():
        yield message(31415, 27182)
        done.wait(LIMIT)

    call = channel.stream_stream(SERVICE + "Both")(requests(), timeout=LIMIT)
    expect(len(next(call)) == 31415)
    call.cancel()
    done.set()
    error = refused(lambda: next(call))
    expect(error.code() == grpc.StatusCode.CANCELLED, error.code())
    # The connection is there for others.
    empty_unary(channel)


@case
def timeout_on_sleeping_server(channel):
    call = channel.stream_stream(SERVICE + "Sleeping")(iter([message(0, 27182)]), timeout=0.5)
    error = refused(lambda: list(call))
    expect(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error.code())


@case
def deadline_reaches_the_server(channel):
    left = int(unary(channel, "Remaining")(b"", timeout=LIMIT))
    # grpc-timeout has few digits, and gRPC rounds up.
    expect(0 < left <= LIMIT * 1000 + 200, left)


@case
def many_calls_at_once_on_one_channel(channel):
    calls = [unary(channel).future(message(1000 + n, 1000), timeout=LIMIT) for n in range(100)]
    lengths = [len(call.result()) for call in calls]
    expect(lengths == [1000 + n for n in range(100)], lengths)


@case
def a_channel_for_each_call(_):
    for _ in range(10):
        with channel_to() as channel:
            large_unary(channel)


def channel_to():
    options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    return grpc.insecure_channel(sys.argv[1], options=options)


def wrong(function):
    try:
        with channel_to() as channel:
            function(channel)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""


print(json.dumps({name: wrong(function) for name, function in CASES.items()}))

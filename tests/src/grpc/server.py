"""A server of gRPC without generated code: messages are bytes, of which the first four say a size. In: a port."""

import sys
import time
from concurrent import futures

import grpc

SERVICE = "conform.Test"


def size(message):
    return int.from_bytes(message[:4], "big")


def metadata(context):
    """Sends back what the client asks to have back."""
    sent = dict(context.invocation_metadata())
    if "x-initial" in sent:
        context.send_initial_metadata((("x-initial", sent["x-initial"]),))
    if "x-trailing-bin" in sent:
        context.set_trailing_metadata((("x-trailing-bin", sent["x-trailing-bin"]),))
    return sent


def unary(request, context):
    sent = metadata(context)
    if "x-code" in sent:
        context.set_trailing_metadata((("x-beside", "told"),))
        code = next(code for code in grpc.StatusCode if code.value[0] == int(sent["x-code"]))
        context.abort(code, bytes.fromhex(sent["x-message-hex"]).decode())
    if "x-compress" in sent:
        context.set_compression(grpc.Compression.Gzip)
    return bytes(size(request))


def empty(request, context):
    assert request == b""
    return b""


def remaining(request, context):
    return str(int(context.time_remaining() * 1000)).encode()


def stream_in(requests, context):
    return sum(len(request) for request in requests).to_bytes(4, "big")


def stream_out(request, context):
    for at in range(0, len(request), 4):
        yield bytes(size(request[at:]))


def both(requests, context):
    metadata(context)
    for request in requests:
        yield bytes(size(request))


def sleeping(requests, context):
    for _ in requests:
        # Until the client's deadline has long been over, or it has gone.
        while context.is_active():
            time.sleep(0.05)
    yield b""


METHODS = {
    "Empty": grpc.unary_unary_rpc_method_handler(empty),
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "StreamIn": grpc.stream_unary_rpc_method_handler(stream_in),
    "StreamOut": grpc.unary_stream_rpc_method_handler(stream_out),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Sleeping": grpc.stream_stream_rpc_method_handler(sleeping),
}

server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=16),
    handlers=(grpc.method_handlers_generic_handler(SERVICE, METHODS),),
    options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)),
)
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()

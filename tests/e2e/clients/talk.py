"""Connections that HTTP does not make. Usage: talk.py WHAT HOST PORT; prints what came."""

import hashlib
import socket
import sys
import threading

WHAT, HOST, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def connect() -> socket.socket:
    return socket.create_connection((HOST, PORT), 30)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def listen_first() -> None:
    with connect() as connection:
        print(connection.recv(100))
        connection.sendall(b"hello\n")
        print(connection.recv(100))


def end_our_side() -> None:
    body = bytes(range(256)) * 4096
    with connect() as connection:
        connection.sendall(body)
        connection.shutdown(socket.SHUT_WR)
        print(read_all(connection).decode() == hashlib.sha256(body).hexdigest())


def their_side_ends_first() -> None:
    with connect() as connection:
        print(read_all(connection))
        connection.sendall(b"and to you")
        connection.shutdown(socket.SHUT_WR)


def wait_for_the_end() -> None:
    """Say when the connection stands, then how it ends."""
    with connect() as connection:
        print(connection.recv(100), flush=True)
        try:
            print("end of file" if not connection.recv(1) else "data")
        except ConnectionResetError:
            print("reset")


def fail_to_connect() -> None:
    try:
        with connect():
            print("connected")
    except OSError as error:
        print(error.strerror)


def many_at_once() -> None:
    """200 connections that are all open at the same time, each with words of its own."""
    barrier = threading.Barrier(200)
    wrong: list[object] = []

    def one(number: int) -> None:
        try:
            with connect() as connection, connection.makefile("rwb") as stream:
                stream.readline()
                barrier.wait(60)
                for turn in range(5):
                    stream.write(f"{number} {turn}\n".encode())
                    stream.flush()
                    if stream.readline() != f"{number} {turn}\n".encode():
                        wrong.append(number)
        except Exception as error:
            barrier.abort()
            wrong.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("all right" if not wrong else wrong[:5])


globals()[WHAT]()

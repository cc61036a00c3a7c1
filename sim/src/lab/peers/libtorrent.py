"""libtorrent at its best in a small, closed network: rarest first, everyone connected to everyone, no DHT, no
local discovery, as many uploads at once as there are peers.

    driver.py make FILE TORRENT
    driver.py run LISTEN FOLDER TORRENT PEER...

`run` prints `ready`, waits for a line on stdin, takes part, prints `done` and the wasted bytes when it has
everything, and goes on until it is killed.
"""

import sys
import time

import libtorrent as lt

PIECE_SIZE = 512 * 1024
PORT = 6881


def make(file, torrent):
    made = lt.create_torrent(lt.list_files(file), PIECE_SIZE, lt.create_torrent.v1_only)
    lt.set_piece_hashes(made, file.rsplit("/", 1)[0])
    with open(torrent, "wb") as out:
        out.write(lt.bencode(made.generate()))


def session(listen):
    return lt.session(
        {
            "listen_interfaces": f"{listen}:{PORT}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            # uTP yields to other traffic, which costs time here.
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "in_enc_policy": 2,
            "out_enc_policy": 2,
            "unchoke_slots_limit": -1,
            "choking_algorithm": 0,
            "seed_choking_algorithm": 0,
            "connection_speed": 200,
            "torrent_connect_boost": 50,
            "min_reconnect_time": 1,
            "allow_multiple_connections_per_ip": False,
                "max_out_request_queue": 1500,
            "send_buffer_watermark": 4 * 1024 * 1024,
            "send_buffer_watermark_factor": 150,
            "strict_end_game_mode": True,
            "suggest_mode": 1,
            "alert_mask": 0,
        }
    )


def run(listen, folder, torrent, peers):
    own = session(listen)
    print("ready", flush=True)
    sys.stdin.readline()
    wanted = lt.add_torrent_params()
    wanted.ti = lt.torrent_info(torrent)
    wanted.save_path = folder
    wanted.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    wanted.max_uploads = -1
    wanted.max_connections = -1
    handle = own.add_torrent(wanted)
    told = 0.0
    while True:
        status = handle.status()
        if status.is_seeding:
            break
        if told + 1 < time.monotonic() and status.state == lt.torrent_status.downloading:
            told = time.monotonic()
            for peer in peers:
                handle.connect_peer((peer, PORT))
        time.sleep(0.02)
    print(f"done {status.total_failed_bytes + status.total_redundant_bytes}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(*sys.argv[2:])
    else:
        run(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])

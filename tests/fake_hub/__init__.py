"""
A Hub on loopback that the real clients speak to: our own code, standard library and PyYAML, not in the wheel.

    def test_push(hub, folder):                       # user `alice`; also in organisation `guild`; `bob` is a stranger
        HfApi().create_repo("alice/agent")            # huggingface_hub, transformers, datasets: as with the real one
        HfApi().upload_folder(folder_path=folder, repo_id="alice/agent")
        assert hub.files("alice/agent")["config.json"] == ...          # path -> bytes; also revision=, repo_type=
        assert hub.commits("alice/agent")[0].title == ...              # newest first: oid, title, author, files
        assert hub.saw_token(hub.token) == []                          # places where a token was stored
        assert hub.sent_to_storage(hub.token) == []                    # requests that took it to another host

    @pytest.mark.parametrize("hub", ["lfs", "multipart", "xet"], indirect=True)       # how large files travel

    hub.inject("POST .*/commit/", status=503, times=2)        # also delay=, drop=True, cut_after=; times=None: always
    hub.inject("PUT /models/", cut_after=20_000)              # an upload that breaks off (LFS and multipart)
    hub.inject("GET /models/", cut_after=20_000)              # a download that does
    hub.inject("", status=500, times=None); hub.heal()        # the whole Hub down, and up again
    hub.waits                                                 # seconds of back-off that were not slept
    hub.log, hub.requests("POST .*commit")                    # method, path, host, user, status, headers
    subprocess.run(["turnppo", "push", ...], env=hub.environment)      # the same from another process
    HfApi(token=hub.tokens["bob"]), hub.tokens["alice-read"]           # a stranger; a token that may only read
    hub.repos["space", "alice/play"].space["secrets"]                  # what no route gives back

Paths: the API is `/api/models/alice/agent/...`, a file `/alice/agent/resolve/<revision>/<path>`, the storage provider
(the same server under the name `localhost`) `/models/alice/agent/<sha256>`; datasets and Spaces alike.

Played: accounts and rights, repositories (create, delete, private, settings), cards' front matter, commits, refs, pull
requests, discussions, trees, downloads with ranges, LFS in one part or several, Xet, Spaces, collections, paging.
Not played: the dataset viewer, search and listings, likes, gated access, buckets, jobs, Space builds and logs, moving
and duplicating repositories. A subprocess sleeps its back-offs for real; in Xet mode bytes travel through a folder, so
that only requests to the Hub itself can fail. It shows that we speak the protocol, not what the real Hub validates.
"""

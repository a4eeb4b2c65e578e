"""SSH to a real sshd on a floating IP."""

from provision.ssh import answers, forget


def test_a_servers_host_key_is_recorded_at_first_and_no_other_accepted(box, key, sshd, tmp_path):
    ip = sshd.addresses[0]
    assert answers(key, ip, "server-1", tmp_path)
    sshd.new_host_key()
    assert not answers(key, ip, "server-1", tmp_path)
    assert answers(key, ip, "server-2", tmp_path)
    forget("server-1", tmp_path)
    assert answers(key, ip, "server-1", tmp_path)


def test_nobody_there_is_no_answer(box, key, tmp_path):
    assert not answers(key, f"{box.place.floating}.250", "server-1", tmp_path)

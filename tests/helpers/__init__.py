"""What several tests share: small networks, scripted generators and environments, processes to launch."""

terraform {
  required_version = ">= 1.5"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0, < 7.0"
    }
    # Turns the names of the zone's name servers into the addresses that failover.toml takes.
    dns = {
      source  = "hashicorp/dns"
      version = ">= 3.3, < 4.0"
    }
  }
}
